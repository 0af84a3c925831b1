//! The HTTP/1 framing as its users meet it: clients with well-formed, odd and hostile requests, and Machines with
//! answers of all kinds.

mod driver;
mod laws;
mod machines;
mod peers;
mod pipe;
mod raw;
mod smuggling;
mod splits;
mod table;
mod wire;
