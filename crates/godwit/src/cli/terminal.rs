//! Our own terminal: its size, and raw mode, which is left on every way out.

use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, RawFd};

use godwit_api::session::Size;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// What programs expect where nobody knows better.
const USUAL: Size = Size { rows: 24, columns: 80 };

/// The size of the terminal that we run on.
pub fn size() -> Size {
    let found = |fd: RawFd| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the pointer is to a winsize of ours that outlives the call.
        let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
        (done == 0 && size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
    };
    [io::stdin().as_raw_fd(), io::stdout().as_raw_fd(), io::stderr().as_raw_fd()]
        .into_iter()
        .find_map(found)
        .unwrap_or(USUAL)
}

/// Raw mode for as long as it lives: every key goes to the Machine, Ctrl-C too.
pub struct RawMode {
    before: Option<Termios>,
}

impl RawMode {
    /// Does nothing where standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing is left to be done for a terminal that is gone.
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}
