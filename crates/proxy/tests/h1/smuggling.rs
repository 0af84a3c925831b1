//! Every case of the table, alone and cut into single bytes, with a second request behind it.

use std::collections::BTreeSet;

use crate::pipe::{Outcome, run};
use crate::table::{Expect, cases};

/// Follows every case: where the connection stays open it must arrive as a request of its own, unharmed.
pub const SECOND: &[u8] = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n";
pub const SECOND_FORWARDED: &[u8] = b"GET /second HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn the_table_is_as_wide_as_promised() {
    let cases = cases();
    let classes: BTreeSet<_> = cases.iter().map(|case| case.class).collect();
    let names: BTreeSet<_> = cases.iter().map(|case| (case.class, case.name)).collect();
    assert!(cases.len() >= 120, "{} cases", cases.len());
    assert!(classes.len() >= 25, "{} classes", classes.len());
    assert_eq!(names.len(), cases.len(), "a name stands twice");
    println!("{} cases in {} classes", cases.len(), classes.len());
}

#[test]
fn each_request_is_refused_or_reaches_the_machine_exactly_as_stated() {
    let mut wrong = Vec::new();
    for case in cases() {
        let mut bytes = case.bytes.clone();
        bytes.extend_from_slice(SECOND);
        let expected = match &case.expect {
            Expect::Refused(refusal) => Outcome { refused: Some(*refusal), ..Outcome::default() },
            Expect::Forwarded(requests) => {
                let mut forwarded = requests.clone();
                forwarded.push(SECOND_FORWARDED.to_vec());
                Outcome { whole: forwarded.len(), forwarded, refused: None, closed: false }
            }
            Expect::ForwardedThenClosed(request) => {
                Outcome { whole: 1, forwarded: vec![request.clone()], refused: None, closed: true }
            }
        };
        let at_once = run([bytes.as_slice()]);
        if at_once != expected {
            wrong.push(format!("{}/{}: {}", case.class, case.name, show(&at_once)));
        }
        let dripped = run(bytes.chunks(1));
        // A body that breaks its framing late has been begun by then; the Machine is never told that it is whole.
        let same_end = dripped.refused == expected.refused && dripped.whole == expected.whole;
        if !same_end || (expected.refused.is_none() && dripped != expected) {
            wrong.push(format!("{}/{} in single bytes: {}", case.class, case.name, show(&dripped)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn show(outcome: &Outcome) -> String {
    let forwarded: Vec<_> = outcome.forwarded.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
    format!("{:?} closed={} {forwarded:?}", outcome.refused, outcome.closed)
}
