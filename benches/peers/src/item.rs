//! What is queued: a name and 200 bytes that follow from it, so that a reader can tell whether it got what was sent.
//!
//! Made by `measure`, carried by every system, checked when it comes back.

use anyhow::{Context, ensure};

/// Bytes of one payload.
pub const PAYLOAD: usize = 200;
/// Of these, the name, in hexadecimal.
const NAME: usize = 16;

/// The name of one item: unique in a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    /// Which producer sends it.
    pub producer: u32,
    /// Its how manieth, from 0.
    pub number: u32,
}

impl Item {
    fn name(self) -> u64 {
        u64::from(self.producer) << 32 | u64::from(self.number)
    }

    /// The 200 bytes: its name, then letters that follow from it and do not compress well.
    pub fn payload(self) -> Vec<u8> {
        let mut bytes = format!("{:016x}", self.name()).into_bytes();
        let mut state = self.name();
        while bytes.len() < PAYLOAD {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend((mixed ^ mixed >> 31).to_le_bytes().map(|byte| b'0' + byte % 64));
        }
        bytes.truncate(PAYLOAD);
        bytes
    }

    /// The item whose payload this is.
    ///
    /// # Errors
    /// It is nobody's payload, to the last byte.
    pub fn from_payload(payload: &[u8]) -> anyhow::Result<Self> {
        let name = payload.get(..NAME).context("a payload came back cut off")?;
        let name = std::str::from_utf8(name).ok().and_then(|name| u64::from_str_radix(name, 16).ok());
        let name = name.context("a payload came back that was not sent")?;
        let item = Self {
            producer: u32::try_from(name >> 32).expect("32 bits are left"),
            number: u32::try_from(name & u64::from(u32::MAX)).expect("32 bits are left"),
        };
        ensure!(item.payload() == payload, "the payload of {item:?} came back changed");
        Ok(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_its_item_and_shows_a_change() {
        let item = Item { producer: 255, number: 7 };
        let mut payload = item.payload();
        assert_eq!(payload.len(), PAYLOAD);
        assert_eq!(Item::from_payload(&payload).unwrap(), item);
        payload[199] ^= 1;
        assert!(Item::from_payload(&payload).is_err());
        assert!(Item::from_payload(&payload[..150]).is_err());
    }
}
