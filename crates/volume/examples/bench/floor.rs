//! The least that a copy over TCP can cost: sendfile of the data's extents on one side, splice into the file on the
//! other, no protocol worth the name and no check of anything.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use godwit_volume::backing::extents_of;

const LANES: usize = 2;
/// What one lane sends before the other's turn.
const PIECE: u64 = 4 << 20;

pub fn copy(source: &Path, target: &Path, size: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("its address");
    let file = File::create(target).expect("a target");
    file.set_len(size).expect("sized");
    let pieces = pieces(source, size);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let mut socket = TcpStream::connect(addr).expect("connects");
            let (peer, _) = listener.accept().expect("accepts");
            let file = &file;
            scope.spawn(move || receive(&peer, file));
            let mine: Vec<_> = pieces.iter().skip(lane).step_by(LANES).copied().collect();
            scope.spawn(move || send(&mut socket, source, &mine));
        }
    });
    file.sync_data().expect("synced");
}

fn pieces(source: &Path, size: u64) -> Vec<(u64, u64)> {
    let file = File::open(source).expect("the source");
    let (mut at, mut found) = (0, Vec::new());
    while at < size {
        for extent in extents_of(&file, at, size - at).expect("extents") {
            if !extent.zero {
                let end = at + extent.len;
                found.extend((at..end).step_by(PIECE as usize).map(|from| (from, PIECE.min(end - from))));
            }
            at += extent.len;
        }
    }
    found
}

fn send(socket: &mut TcpStream, source: &Path, pieces: &[(u64, u64)]) {
    let file = File::open(source).expect("the source");
    for (offset, len) in pieces {
        socket.write_all(&[offset.to_le_bytes(), len.to_le_bytes()].concat()).expect("a head");
        let (mut at, end) = (*offset as i64, offset + len);
        while (at as u64) < end {
            let left = (end - at as u64) as usize;
            // SAFETY: plain system call on two descriptors that live through it; `at` is ours.
            let sent = unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut at, left) };
            assert!(sent > 0, "sendfile: {}", std::io::Error::last_os_error());
        }
    }
}

fn receive(mut socket: &TcpStream, file: &File) {
    let mut pipe = [0; 2];
    // SAFETY: the kernel writes two descriptors to `pipe`, which nobody else knows.
    let (read, write) = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        libc::fcntl(pipe[1], libc::F_SETPIPE_SZ, 1 << 20);
        (OwnedFd::from_raw_fd(pipe[0]), OwnedFd::from_raw_fd(pipe[1]))
    };
    let mut head = [0; 16];
    while socket.read_exact(&mut head).is_ok() {
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let (mut at, mut left) = (word(0) as i64, word(8) as usize);
        while left > 0 {
            let none = std::ptr::null_mut();
            // SAFETY: plain system calls on descriptors that live through them; offsets are ours or none.
            let mut moved =
                unsafe { libc::splice(socket.as_raw_fd(), none, write.as_raw_fd(), none, left, libc::SPLICE_F_MOVE) };
            assert!(moved > 0, "splice: {}", std::io::Error::last_os_error());
            left -= moved as usize;
            while moved > 0 {
                let (from, to) = (read.as_raw_fd(), file.as_raw_fd());
                // SAFETY: as above.
                let put = unsafe { libc::splice(from, none, to, &raw mut at, moved as usize, libc::SPLICE_F_MOVE) };
                assert!(put > 0, "splice: {}", std::io::Error::last_os_error());
                moved -= put;
            }
        }
    }
}
