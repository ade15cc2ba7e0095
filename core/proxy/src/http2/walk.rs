//! Where frames begin (RFC 9113, 4.1), without a look at what is in them.

/// A frame's head (RFC 9113, 4.1), and of a reset its code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) code: u32,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// The code of what a peer did wrong (RFC 9113, 7).
pub(crate) const PROTOCOL_ERROR: u32 = 1;

impl Head {
    pub(super) const LENGTH: usize = 9;
    pub(super) const CODE: usize = 4;

    /// Of the bytes known of it, how many there are to be.
    fn wanted(known: &[u8]) -> usize {
        match known {
            [0, 0, 4, RST_STREAM, _, _, _, _, _, ..] => Head::LENGTH + Head::CODE,
            _ => Head::LENGTH,
        }
    }

    fn read([l0, l1, l2, kind, flags, s0, s1, s2, s3, code @ ..]: [u8; Head::LENGTH + Head::CODE]) -> Self {
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & !(1 << 31);
        Head { length, kind, flags, stream, code: u32::from_be_bytes(code) }
    }
}

/// A frame whose payload is no longer than a client has to take.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = (payload.len() as u32).to_be_bytes();
    [&[l0, l1, l2, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// Finds the heads of frames in bytes that come in any pieces.
#[derive(Default, Clone)]
pub(crate) struct Walk {
    head: [u8; Head::LENGTH + Head::CODE],
    /// Bytes known of the next head.
    known: usize,
    /// Bytes left of what is no head.
    pub(super) left: usize,
}

impl Walk {
    /// Of bytes of which so many are no frame.
    pub(super) fn behind(left: usize) -> Self {
        Walk { left, ..Walk::default() }
    }

    pub(crate) fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(Head)) {
        while let Some(head) = self.next(&mut bytes) {
            each(head);
        }
    }

    /// The next head, behind which the bytes begin then; none if they end before.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        while !bytes.is_empty() {
            let (skipped, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= skipped.len();
            let wanted = Head::wanted(&self.head[..self.known]);
            let missing = &mut self.head[self.known..wanted];
            let (more, rest) = rest.split_at(missing.len().min(rest.len()));
            missing[..more.len()].copy_from_slice(more);
            self.known += more.len();
            *bytes = rest;
            if self.known == Head::wanted(&self.head[..self.known]) {
                let head = Head::read(self.head);
                self.left = Head::LENGTH + head.length as usize - self.known;
                self.known = 0;
                return Some(head);
            }
        }
        None
    }

    pub(super) fn is_between_frames(&self) -> bool {
        self.known == 0 && self.left == 0
    }
}
