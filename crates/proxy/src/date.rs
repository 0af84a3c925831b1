//! The Date field (RFC 9110 section 6.6.1): written once a second in each thread, shared by all answers of that second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

thread_local! {
    static WRITTEN: RefCell<(u64, HeaderValue)> = RefCell::new(written(0));
}

fn written(second: u64) -> (u64, HeaderValue) {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
    (second, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")))
}

/// Now, as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn now() -> HeaderValue {
    // A clock before 1970 is one that nobody set; years beyond 9999 cannot be written.
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(253_402_300_799);
    WRITTEN.with_borrow_mut(|kept| {
        if kept.0 != second {
            *kept = written(second);
        }
        kept.1.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_present_second_as_the_rfc_writes_it() {
        assert_eq!(written(784_111_777).1, "Sun, 06 Nov 1994 08:49:37 GMT");
        let read = httpdate::parse_http_date(now().to_str().unwrap()).unwrap();
        assert!(read.elapsed().unwrap() < Duration::from_secs(60));
    }
}
