//! Commands on a terminal: a test that plays the person before it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::tcgetattr;

use super::bed::{Bed, ended, until};
use crate::support::run;

/// The command line on a terminal of the test's.
struct Person {
    keys: File,
    terminal: File,
    seen: Arc<Mutex<String>>,
    child: Child,
}

impl Person {
    fn before(mut command: Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let ends = openpty(Some(&size), None).expect("a terminal");
        let (keys, terminal) = (File::from(ends.master), File::from(ends.slave));
        let end = || Stdio::from(terminal.try_clone().expect("its end"));
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "vt100");
        // SAFETY: between fork and exec only two system calls are made.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the command line runs");
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut screen, into) = (keys.try_clone().expect("its screen"), seen.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut piece) {
                into.lock().expect("the screen").push_str(&String::from_utf8_lossy(&piece[..read]));
            }
        });
        Self { keys, terminal, seen, child }
    }

    fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).expect("keys");
    }

    /// Waits until the screen has shown it, and forgets what was shown before.
    fn sees(&self, text: &str) {
        let shown = || self.seen.lock().expect("the screen").clone();
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        while !shown().contains(text) {
            assert!(std::time::Instant::now() < deadline, "{text:?} never came: {:?}", shown());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.seen.lock().expect("the screen").clear();
    }

    fn resizes(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the pointer is to a size of ours that outlives the call.
        assert_eq!(unsafe { libc::ioctl(self.keys.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }
}

#[test]
fn a_shell_on_a_terminal_follows_its_size_and_leaves_ours_as_it_was() {
    run(async {
        let bed = Bed::new().await;
        let mut command = bed.godwit(&["machine", "shell"]);
        command.env("PS1", "");
        let mut person = Person::before(command, 30, 100);
        let before = tcgetattr(&person.terminal).expect("its modes");
        // What is typed is shown as well: the answers are told apart by what the shell works out.
        person.types("echo is $((6*7)) $TERM on $(tty)\n");
        person.sees("is 42 vt100 on /dev/pts/");
        person.types("echo size $(stty size)\n");
        person.sees("size 30 100");
        person.resizes(40, 120);
        until("the new size arrives", || {
            person.seen.lock().expect("the screen").contains("size 40 120") || {
                (&person.keys).write_all(b"echo size $(stty size)\n").expect("keys");
                std::thread::sleep(std::time::Duration::from_millis(200));
                false
            }
        });
        // Ctrl-C is the Machine's, not ours.
        person.types("sleep 55555\n");
        until("it sleeps", || !bed.pids_of("sleep 55555").is_empty());
        person.types("\x03");
        until("it is interrupted", || bed.pids_of("sleep 55555").is_empty());
        person.types("exit 7\n");
        assert_eq!(ended(&mut person.child, "the shell").code(), Some(7));
        let after = tcgetattr(&person.terminal).expect("its modes");
        assert_eq!(after, before, "the terminal is as it was");
    });
}

#[test]
fn a_program_on_a_terminal_ends_with_its_client_and_the_terminal_is_restored() {
    run(async {
        let bed = Bed::new().await;
        let command = bed.exec(&["-it"], &["top", "-d", "1"]);
        let mut person = Person::before(command, 24, 80);
        let before = tcgetattr(&person.terminal).expect("its modes");
        person.sees("Mem:");
        until("raw mode is on", || tcgetattr(&person.terminal).is_ok_and(|now| now != before));
        let pid = i32::try_from(person.child.id()).expect("a pid");
        godwit_lab::fleet::kill(pid, libc::SIGTERM);
        assert_eq!(ended(&mut person.child, "the client").code(), Some(130));
        assert_eq!(tcgetattr(&person.terminal).expect("its modes"), before, "restored on the way out");
        until("the program is gone", || bed.pids_of("top -d 1").is_empty());

        let mut person = Person::before(bed.exec(&["-it"], &["top", "-d", "2"]), 24, 80);
        person.sees("Mem:");
        person.child.kill().expect("the client dies");
        person.child.wait().expect("it is dead");
        until("the program is gone", || bed.pids_of("top -d 2").is_empty());
    });
}

#[test]
fn an_image_without_a_shell_is_named_and_the_way_on_told() {
    run(async {
        let fleet = crate::support::fleet(1, &[]);
        fleet.create_app("plain").await.expect("the app");
        let machine = crate::support::demo_machine(&fleet, "plain", serde_json::json!({}), true).await;
        let output = fleet.cli(&["machine", "shell", machine.id.as_str(), "-a", "plain"]).expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(text.contains("has no shell") && text.contains("machine exec"), "{text}");
    });
}
