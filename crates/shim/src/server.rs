//! The shim's socket: connections, frames, versions. It decides nothing: requests are handed out, replies taken in.

use godwit_driver::protocol::{self, Reply, Request};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::sys;

/// Most connections at once; further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 64;
/// A reader that lets more than this pile up is hung up on.
const MAX_OUT_BYTES: usize = 8 << 20;
/// How long the last replies may take to leave at the end.
const LAST_WORDS_TIMEOUT_MS: u64 = 1000;

pub struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    greeted: bool,
    /// Wants to hear of the end.
    waits: bool,
    closed: bool,
}

impl Connection {
    fn reply(&mut self, reply: &Reply) {
        match protocol::encode(reply) {
            Ok(frame) if self.outgoing.len() + frame.len() <= MAX_OUT_BYTES => self.outgoing.extend(frame),
            _ => self.closed = true,
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => self.closed = true,
                Ok(written) => {
                    self.outgoing.drain(..written);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.closed = true,
            }
            return;
        }
    }

    /// Reads what is there; at most one frame's worth at a time.
    fn fill(&mut self) {
        let mut chunk = [0; 16 << 10];
        while self.incoming.len() < protocol::MAX_FRAME_BYTES + protocol::PREFIX_BYTES {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    self.incoming.extend_from_slice(&chunk[..read]);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.closed = true,
            }
            return;
        }
    }
}

pub struct Server {
    listener: UnixListener,
    connections: Vec<Connection>,
    machine: String,
    instance: String,
}

impl Server {
    /// Listens at `path`, of whatever length: the folder is named by a descriptor (socket addresses end at 108 bytes).
    pub fn bind(path: &Path, machine: &str, instance: &str) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let folder = File::open(folder)?;
        let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        let listener = UnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        let (machine, instance) = (machine.to_owned(), instance.to_owned());
        Ok(Self { listener, connections: Vec::new(), machine, instance })
    }

    /// Adds what to poll for: the listener (when there is room), then every connection in order.
    pub fn watch(&self, fds: &mut Vec<libc::pollfd>) {
        let listening = if self.connections.len() < MAX_CONNECTIONS { sys::READABLE } else { 0 };
        fds.push(sys::watch(&self.listener, listening));
        for connection in &self.connections {
            let writing = if connection.outgoing.is_empty() { 0 } else { sys::WRITABLE };
            fds.push(sys::watch(&connection.stream, sys::READABLE | writing));
        }
    }

    /// Moves bytes for what is ready (`ready` as `watch` added it) and answers the requests that are complete, by the
    /// index of their connection. Indices hold until `sweep`.
    pub fn turn(&mut self, ready: &[libc::pollfd]) -> Vec<(usize, Request)> {
        for (connection, fd) in self.connections.iter_mut().zip(&ready[1..]) {
            if fd.revents & sys::WRITABLE != 0 {
                connection.flush();
            }
            if fd.revents & !sys::WRITABLE != 0 {
                connection.fill();
            }
        }
        if ready[0].revents != 0 {
            self.accept();
        }
        let mut requests = Vec::new();
        for index in 0..self.connections.len() {
            if let Some(request) = self.next_request(index) {
                requests.push((index, request));
            }
        }
        requests
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let (incoming, outgoing) = (Vec::new(), Vec::new());
            let mut connection = Connection { stream, incoming, outgoing, greeted: false, waits: false, closed: false };
            connection.fill();
            self.connections.push(connection);
        }
    }

    /// The next request of a connection, past its hello.
    fn next_request(&mut self, index: usize) -> Option<Request> {
        let connection = &mut self.connections[index];
        loop {
            let request = match protocol::decode(&mut connection.incoming) {
                Ok(request) => request?,
                Err(e) => {
                    let reason = format!("no request: {e}");
                    connection.reply(&Reply::Refused { reason, user_fault: true, busy: false });
                    connection.closed = true;
                    return None;
                }
            };
            match request {
                Request::Hello { newest } => match protocol::negotiate(protocol::VERSION, newest) {
                    Some(version) => {
                        let (machine, instance) = (self.machine.clone(), self.instance.clone());
                        connection.reply(&Reply::Welcome { version, machine, instance });
                        connection.greeted = true;
                    }
                    None => {
                        let reason = format!("protocol {newest} and {} are too far apart", protocol::VERSION);
                        connection.reply(&Reply::Refused { reason, user_fault: false, busy: false });
                        connection.closed = true;
                        return None;
                    }
                },
                request if connection.greeted => return Some(request),
                _ => {
                    connection.closed = true;
                    return None;
                }
            }
        }
    }

    pub fn reply(&mut self, index: usize, reply: &Reply) {
        self.connections[index].reply(reply);
    }

    /// This one is told the exit when it comes.
    pub fn subscribe(&mut self, index: usize) {
        self.connections[index].waits = true;
    }

    /// Gives a connection away, to a process that answers in the shim's place; it is closed here.
    pub fn give_away(&mut self, index: usize) -> io::Result<UnixStream> {
        self.connections[index].closed = true;
        self.connections[index].stream.try_clone()
    }

    /// Forgets connections that are done.
    pub fn sweep(&mut self) {
        self.connections.retain(|c| !c.closed);
    }

    /// Tells everybody who waits, gives the words a bounded time to leave, and hangs up.
    pub fn finish(mut self, reply: &Reply) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(LAST_WORDS_TIMEOUT_MS);
        for connection in self.connections.iter_mut().filter(|c| c.waits) {
            connection.reply(reply);
        }
        loop {
            self.connections.retain(|c| !c.closed && !c.outgoing.is_empty());
            let left_ms = deadline.saturating_duration_since(std::time::Instant::now()).as_millis() as u64;
            if self.connections.is_empty() || left_ms == 0 {
                return;
            }
            let mut fds: Vec<_> = self.connections.iter().map(|c| sys::watch(&c.stream, sys::WRITABLE)).collect();
            if sys::poll(&mut fds, Some(left_ms)).is_err() {
                return;
            }
            self.connections.iter_mut().for_each(Connection::flush);
        }
    }
}
