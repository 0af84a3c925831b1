//! The life of one Machine, decided and never done: which jobs there are and of which steps they consist (`job`),
//! what a host remembers of a Machine (`record`), what each event changes (`life`), whether an ended process starts
//! again (`restart`), how it is asked to stop (`signal`), what fits on a host (`capacity`), and what a host's
//! placements ask of it (`converge`).
//!
//! Everything here is pure: no clock, no chance, no IO. Time and drawn bits are handed in with each event, and what
//! is to be done comes out as values. It must not know how a step is carried out or where a record is kept.

pub mod capacity;
pub mod converge;
pub mod job;
pub mod life;
pub mod record;
pub mod restart;
pub mod signal;

pub use job::{Fault, JobKind, OnAbort, Outcome, Step, StepRow, StopMode, When, table};
pub use life::{Adopted, Answer, Ask, AskId, Context, Effects, Event, Life, Note, Passage, Refusal, Sync, Until, What};
pub use record::{Hydration, Job, Lent, Move, Phase, Record, Source};
