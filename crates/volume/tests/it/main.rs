//! What a user of volumes sees: the map after a crash, a clone while it fills, NBD against Debian's tools, a file
//! system on top while its server dies. One binary, all side by side, every mount and process of its own.

mod device;
mod exporter;
mod front;
mod host;
mod interop;
mod map;
mod power;
mod protocol;
mod support;
