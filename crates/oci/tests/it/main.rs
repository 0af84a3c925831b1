//! What a user of the content store sees: images loaded, pulled, served, unpacked, mounted
//! and collected, with real archives, real sockets and a real overlayfs.

mod collect;
mod hostile;
mod load;
mod overlay;
mod pull;
mod reports;
mod routes;
mod support;
mod unpack;
