//! Bytes in and out of Machines: commands whose streams have no limit, terminals, files, ports, logs. Seen through the
//! real command line, on a fleet with an image of busybox.

mod bed;
mod copies;
mod dumps;
mod lines;
mod stopped;
mod streams;
mod terminals;
