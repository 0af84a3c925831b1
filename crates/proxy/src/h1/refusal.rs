//! Why a message is refused: one word each, which metrics count and tests expect, and the status that says so.

/// What is wrong with a message. A refused connection is never used again: whoever sends one message that can be
/// read in two ways has said nothing that can be trusted about where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    // The head as a whole.
    /// A line that ends in LF alone.
    BareLf,
    /// A CR that no LF follows.
    BareCr,
    Nul,
    /// A control character other than HTAB in a value.
    ControlCharacter,
    /// A value of HTTP/2 with blanks around it (RFC 9113 section 8.2.1).
    PaddedValue,
    /// A head that is not finished within its limit.
    HeadTooLarge,
    TooManyFields,
    /// The peer ended in the middle of a head.
    CutHead,
    // The request line.
    BadMethod,
    MethodTooLong,
    /// `CONNECT` and `TRACE`: we are no forward proxy, and an echo leaks what we add.
    MethodNotAllowed,
    BadTarget,
    /// More than the two spaces that a request line has.
    SpaceInTarget,
    TargetTooLong,
    /// HTTP/0.9, HTTP/2.0 (a preface on the wrong port), lower case, and what is no version at all.
    BadVersion,
    // Fields.
    EmptyName,
    BadName,
    SpaceBeforeColon,
    NoColon,
    /// A line that continues the one before it (RFC 9112 section 5.2).
    ObsFold,
    BadConnection,
    /// `Connection` names a field that is meant for the Machine.
    NominatesEndToEnd,
    BadExpect,
    BadUpgrade,
    // Framing.
    LengthAndEncoding,
    BadLength,
    DuplicateLength,
    BadEncoding,
    /// A coding other than `chunked` (RFC 9112 section 6.1).
    UnknownEncoding,
    DuplicateEncoding,
    /// Transfer-Encoding in a message of HTTP/1.0 (RFC 9112 section 6.1).
    EncodingInOld,
    // Host.
    NoHost,
    DuplicateHost,
    BadHost,
    /// The target's authority is not the Host field's.
    HostMismatch,
    // Bodies.
    BadChunkSize,
    ChunkTooLarge,
    BadChunkExtension,
    BadChunkEnd,
    ChunkOverhead,
    BadTrailer,
    TrailersTooLarge,
    /// The peer ended in the middle of a body.
    CutBody,
    // Answers of a Machine.
    BadStatus,
    /// It switched to a protocol that nobody had asked for.
    UnaskedSwitch,
    TooManyInterim,
    /// It spoke before it was asked.
    Unasked,
}

impl Refusal {
    pub const ALL: [Self; 47] = [
        Self::BareLf,
        Self::BareCr,
        Self::Nul,
        Self::ControlCharacter,
        Self::PaddedValue,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::CutHead,
        Self::BadMethod,
        Self::MethodTooLong,
        Self::MethodNotAllowed,
        Self::BadTarget,
        Self::SpaceInTarget,
        Self::TargetTooLong,
        Self::BadVersion,
        Self::EmptyName,
        Self::BadName,
        Self::SpaceBeforeColon,
        Self::NoColon,
        Self::ObsFold,
        Self::BadConnection,
        Self::NominatesEndToEnd,
        Self::BadExpect,
        Self::BadUpgrade,
        Self::LengthAndEncoding,
        Self::BadLength,
        Self::DuplicateLength,
        Self::BadEncoding,
        Self::UnknownEncoding,
        Self::DuplicateEncoding,
        Self::EncodingInOld,
        Self::NoHost,
        Self::DuplicateHost,
        Self::BadHost,
        Self::HostMismatch,
        Self::BadChunkSize,
        Self::ChunkTooLarge,
        Self::BadChunkExtension,
        Self::BadChunkEnd,
        Self::ChunkOverhead,
        Self::BadTrailer,
        Self::TrailersTooLarge,
        Self::CutBody,
        Self::BadStatus,
        Self::UnaskedSwitch,
        Self::TooManyInterim,
        Self::Unasked,
    ];

    /// The metric's label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::Nul => "nul",
            Self::ControlCharacter => "control_character",
            Self::PaddedValue => "padded_value",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::CutHead => "cut_head",
            Self::BadMethod => "bad_method",
            Self::MethodTooLong => "method_too_long",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BadTarget => "bad_target",
            Self::SpaceInTarget => "space_in_target",
            Self::TargetTooLong => "target_too_long",
            Self::BadVersion => "bad_version",
            Self::EmptyName => "empty_name",
            Self::BadName => "bad_name",
            Self::SpaceBeforeColon => "space_before_colon",
            Self::NoColon => "no_colon",
            Self::ObsFold => "obs_fold",
            Self::BadConnection => "bad_connection",
            Self::NominatesEndToEnd => "nominates_end_to_end",
            Self::BadExpect => "bad_expect",
            Self::BadUpgrade => "bad_upgrade",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::BadLength => "bad_length",
            Self::DuplicateLength => "duplicate_length",
            Self::BadEncoding => "bad_encoding",
            Self::UnknownEncoding => "unknown_encoding",
            Self::DuplicateEncoding => "duplicate_encoding",
            Self::EncodingInOld => "encoding_in_old",
            Self::NoHost => "no_host",
            Self::DuplicateHost => "duplicate_host",
            Self::BadHost => "bad_host",
            Self::HostMismatch => "host_mismatch",
            Self::BadChunkSize => "bad_chunk_size",
            Self::ChunkTooLarge => "chunk_too_large",
            Self::BadChunkExtension => "bad_chunk_extension",
            Self::BadChunkEnd => "bad_chunk_end",
            Self::ChunkOverhead => "chunk_overhead",
            Self::BadTrailer => "bad_trailer",
            Self::TrailersTooLarge => "trailers_too_large",
            Self::CutBody => "cut_body",
            Self::BadStatus => "bad_status",
            Self::UnaskedSwitch => "unasked_switch",
            Self::TooManyInterim => "too_many_interim",
            Self::Unasked => "unasked",
        }
    }

    /// The one with this word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.word() == word)
    }

    /// What is wrong with a Machine's answer, for whoever asked for it.
    pub const fn of_answer(self) -> &'static str {
        match self {
            Self::TooManyFields => "it has more than 128 header fields",
            Self::HeadTooLarge => "its header is larger than 64 KiB",
            Self::ObsFold => "a header field goes on in a second line",
            Self::BadStatus => "its status line is invalid; a status is a number from 100 to 599",
            Self::BadVersion => "it is not an HTTP/1.1 answer",
            Self::CutHead => "it ends within its header",
            Self::BadLength | Self::DuplicateLength => "its Content-Length is invalid",
            Self::LengthAndEncoding => "it has both a Content-Length and a Transfer-Encoding",
            Self::BadEncoding | Self::DuplicateEncoding | Self::EncodingInOld => "its Transfer-Encoding is invalid",
            Self::UnaskedSwitch => "it switches to a protocol that nobody asked for",
            Self::TooManyInterim => "it has too many interim answers (1xx) before it",
            _ => "its header is malformed",
        }
    }

    /// It was found in a body, behind a head that was served.
    pub const fn is_of_body(self) -> bool {
        matches!(
            self,
            Self::BadChunkSize
                | Self::ChunkTooLarge
                | Self::BadChunkExtension
                | Self::BadChunkEnd
                | Self::ChunkOverhead
                | Self::BadTrailer
                | Self::TrailersTooLarge
                | Self::CutBody
        )
    }

    /// What a client is told. (What a Machine did wrong is a 502 to the client, whatever it was.)
    pub const fn status(self) -> u16 {
        match self {
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => 431,
            Self::TargetTooLong => 414,
            Self::MethodTooLong | Self::UnknownEncoding => 501,
            Self::MethodNotAllowed => 405,
            Self::BadVersion => 505,
            Self::BadExpect => 417,
            _ => 400,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let mut words: Vec<_> = Refusal::ALL.iter().map(|refusal| refusal.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Refusal::ALL.len());
        assert!(Refusal::ALL.iter().all(|one| Refusal::of_word(one.word()) == Some(*one)));
        // The last variant: if one is added, this and ALL must follow.
        assert_eq!(Refusal::Unasked as usize + 1, Refusal::ALL.len());
    }
}
