//! Where the frames of an HTTP/2 byte stream begin. Reads the nine bytes of each frame's head and, of RST_STREAM and GOAWAY,
//! the code; everything else is skipped by length.
//!
//! ```text
//! preface (24, from a client) | length (3) type (1) flags (1) stream (4) | payload (length) | length ...
//! ```
//! Source: RFC 9113, sections 3.4, 4.1, 6.4 and 6.8.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

/// A frame's type, as numbered by RFC 9113, section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// DATA and HEADERS: h2 has its own limits for those.
    Carrying,
    /// RST_STREAM with its code.
    Reset(u32),
    /// GOAWAY with its code.
    GoAway(u32),
    /// PRIORITY, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, and what nobody knows.
    Bare,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// What is still to come of the preface.
    preface: &'static [u8],
    /// Bytes of payload that are skipped.
    skipped: usize,
    /// What is kept of a frame: its head, and the beginning of a payload that has a code.
    kept: [u8; HEAD + 8],
    length: usize,
    has_begun: bool,
}

impl Scanner {
    /// What a client sends.
    pub(crate) fn of_client() -> Self {
        Self { preface: PREFACE, skipped: 0, kept: [0; HEAD + 8], length: 0, has_begun: false }
    }

    /// What a server sends.
    pub(crate) fn of_server() -> Self {
        Self { preface: &[], ..Self::of_client() }
    }

    /// Whether a first frame has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the next byte is a frame's first.
    pub(crate) fn is_between(&self) -> bool {
        self.has_begun && self.skipped == 0 && self.length == 0
    }

    /// Tells of each frame whose head (and code) end in `bytes`; false if this is no HTTP/2 from the beginning.
    pub(crate) fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) -> bool {
        let expected = self.preface.len().min(bytes.len());
        if bytes[..expected] != self.preface[..expected] {
            return false;
        }
        (self.preface, bytes) = (&self.preface[expected..], &bytes[expected..]);
        while !bytes.is_empty() {
            if self.skipped > 0 {
                let skipped = self.skipped.min(bytes.len());
                self.skipped -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let missing = self.wanted() - self.length;
            let taken = missing.min(bytes.len());
            self.kept[self.length..self.length + taken].copy_from_slice(&bytes[..taken]);
            self.length += taken;
            bytes = &bytes[taken..];
            if self.length == self.wanted() {
                self.skipped = self.payload() - (self.length - HEAD);
                each(self.frame());
                self.length = 0;
                self.has_begun = true;
            }
        }
        true
    }

    fn payload(&self) -> usize {
        usize::from(self.kept[0]) << 16 | usize::from(self.kept[1]) << 8 | usize::from(self.kept[2])
    }

    /// Bytes to keep of the frame at hand: as far as its code, if it is long enough to have one.
    fn wanted(&self) -> usize {
        if self.length < HEAD {
            return HEAD;
        }
        match self.kept[3] {
            3 if self.payload() >= 4 => HEAD + 4,
            7 if self.payload() >= 8 => HEAD + 8,
            _ => HEAD,
        }
    }

    fn frame(&self) -> Frame {
        let code = |at: usize| self.kept[at..at + 4].iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
        match (self.kept[3], self.length - HEAD) {
            (0 | 1, _) => Frame::Carrying,
            (3, 4) => Frame::Reset(code(HEAD)),
            (7, 8) => Frame::GoAway(code(HEAD + 4)),
            _ => Frame::Bare,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let goaway = [0, 0, 0, 9, 0, 0, 0, 11, b'c', b'a', b'l', b'm'];
        let text = [
            PREFACE.to_vec(),
            frame(4, &[]),
            frame(0, &[3; 70_000]),
            frame(3, &[0, 0, 0, 8]),
            frame(6, &[0; 8]),
            frame(7, &goaway),
            frame(3, &[1]),
            frame(1, b"x"),
        ]
        .concat();
        let expected = [
            Frame::Bare,
            Frame::Carrying,
            Frame::Reset(8),
            Frame::Bare,
            Frame::GoAway(11),
            Frame::Bare,
            Frame::Carrying,
        ];
        for size in [1, 2, 7, 9, 10, 24, 25, 1000, text.len()] {
            let (mut scanner, mut found) = (Scanner::of_client(), Vec::new());
            assert!(text.chunks(size).all(|part| scanner.read(part, |frame| found.push(frame))), "{size}");
            assert_eq!(found, expected, "{size}");
            assert!(scanner.is_between(), "{size}");
            assert!(scanner.read(&[0], |_| ()));
            assert!(!scanner.is_between(), "{size}");
        }
    }

    #[test]
    fn another_protocol_is_seen_at_its_first_wrong_byte() {
        let cut = |text: &[u8], size: usize| {
            let mut scanner = Scanner::of_client();
            text.chunks(size).all(|part| scanner.read(part, |_| ()))
        };
        for size in [1, 4, 30] {
            assert!(!cut(b"PRI * HTTP/1.0\r\n\r\nSM\r\n\r\n", size) && !cut(b"G", size));
            assert!(cut(&PREFACE[..20], size) && cut(PREFACE, size));
        }
    }
}
