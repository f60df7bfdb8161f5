//! Where in a source a change stands.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A place in a source: an epoch and up to 31 bytes that only the connector understands.
///
/// Positions of one source compare by epoch, then by bytes, so connectors write their numbers
/// big-endian. The epoch rises when the log itself is another one (a new system identifier, timeline,
/// slot or server identity). The text form is `EPOCH-HEX`, e.g. `1-0000000001a2b3c4`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    epoch: u64,
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Position {
    /// The most bytes a connector may use.
    pub const MAX: usize = 31;

    /// The place before everything of epoch 0.
    pub const ZERO: Self = Self { epoch: 0, bytes: [0; Self::MAX], len: 0 };

    /// A position; `None` when `bytes` has more than [`Position::MAX`] bytes.
    pub fn new(epoch: u64, bytes: &[u8]) -> Option<Self> {
        let mut position = Self { epoch, ..Self::ZERO };
        position.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        position.len = u8::try_from(bytes.len()).ok()?;
        Some(position)
    }

    /// A position of numbers, most significant first; at most three fit.
    pub const fn of<const N: usize>(epoch: u64, numbers: [u64; N]) -> Self {
        const { assert!(N <= 3, "at most three numbers fit a position") };
        let mut position = Self { epoch, bytes: [0; Self::MAX], len: (N * 8) as u8 };
        let mut at = 0;
        while at < N * 8 {
            position.bytes[at] = numbers[at / 8].to_be_bytes()[at % 8];
            at += 1;
        }
        position
    }

    /// The numbers of a position made by [`Position::of`]; missing ones read as 0.
    pub fn numbers(&self) -> [u64; 3] {
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.bytes[at * 8..at * 8 + 8]);
            u64::from_be_bytes(bytes)
        };
        [number(0), number(1), number(2)]
    }

    /// Which incarnation of the source's log this is in.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The connector's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.epoch)?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({self})")
    }
}

/// The text is not a position.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a position: expected EPOCH-HEX")]
pub struct ParsePositionError(String);

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePositionError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Position> {
    let (epoch, hex) = text.split_once('-')?;
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    Position::new(epoch.parse().ok()?, &bytes)
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // inside proptest!, where clippy.toml does not reach
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn orders_as_its_numbers_do(a in any::<(u64, [u64; 3])>(), b in any::<(u64, [u64; 3])>()) {
            let order = Position::of(a.0, a.1).cmp(&Position::of(b.0, b.1));
            prop_assert_eq!(order, a.cmp(&b));
        }

        #[test]
        fn text_round_trips(epoch in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..=31)) {
            let position = Position::new(epoch, &bytes).unwrap();
            prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
            prop_assert_eq!(position.bytes(), &bytes[..]);
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".*") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
            }
        }
    }

    #[test]
    fn numbers_come_back() {
        assert_eq!(Position::of(3, [1, 2, 3]).numbers(), [1, 2, 3]);
        assert_eq!(Position::of(3, [7]).numbers(), [7, 0, 0]);
    }

    #[test]
    fn too_many_bytes_are_refused() {
        assert!(Position::new(0, &[0; 32]).is_none());
    }
}
