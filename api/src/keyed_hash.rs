//! The api's keyed hash. Caches, limits and the memory of sent events store only the hashes of texts.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::Hasher as _,
};

use foldhash::fast::RandomState;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// How many groups [`Hashed::group`] makes.
pub(crate) const GROUPS: usize = 1024;

/// A map by what a [`KeyedHash`] made: nobody can choose such keys, so the map's own hash need not be a strong one.
pub(crate) type HashedMap<K, V> = HashMap<K, V, RandomState>;
/// The same for a set.
pub(crate) type HashedSet<K> = HashSet<K, RandomState>;

/// Hashes texts with a secret key.
pub(crate) struct KeyedHash([u8; 16]);

/// Stands for some texts. With 128 bits and a secret key, different texts never get the same hash, by chance or by
/// design.
///
/// It has two halves, because the alignment of a `u128` would make cache entries larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hashed([u64; 2]);

impl KeyedHash {
    /// A key that only this process knows.
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }

    /// A key that other processes may know as well.
    pub(crate) fn new(key: [u8; 16]) -> Self {
        Self(key)
    }

    /// The hash of these parts. It includes the length of each part, so that no text can move into the next part.
    pub(crate) fn of<const N: usize>(&self, parts: [&[u8]; N]) -> Hashed {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        for part in parts {
            // The length has the same bytes on all machines that share a key.
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            hasher.write(&length.to_le_bytes());
            hasher.write(part);
        }
        let hash = hasher.finish128();
        Hashed([hash.h1, hash.h2])
    }
}

impl Hashed {
    /// Half of the hash, for uses where a collision does little harm.
    pub(crate) fn half(self) -> u64 {
        self.0[0]
    }

    /// A quarter of the hash, to distinguish a few texts.
    pub(crate) fn quarter(self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// One of [`GROUPS`] groups.
    pub(crate) fn group(self) -> usize {
        usize::try_from(self.0[1] % GROUPS as u64).unwrap_or_default()
    }

    /// The hash as one number.
    pub(crate) fn to_bits(self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }

    /// The hash with this number.
    pub(crate) fn from_bits(bits: u128) -> Self {
        let bytes = bits.to_be_bytes();
        let half = |from: usize| bytes[from..from + 8].try_into().map(u64::from_be_bytes);
        Self([half(0).unwrap_or_default(), half(8).unwrap_or_default()])
    }
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn hashes_tell_everything_apart() {
        let hash = KeyedHash::random();
        let cases = [
            ["ab", "c", "d", "e"],
            ["a", "bc", "d", "e"],
            ["a", "b", "cd", "e"],
            ["abc", "d", "e", ""],
            ["", "abc", "d", "e"],
        ];
        let of = |hash: &KeyedHash, parts: [&str; 4]| hash.of(parts.map(str::as_bytes));
        let hashes: HashSet<_> = cases.map(|parts| of(&hash, parts)).into_iter().collect();
        assert_eq!(hashes.len(), cases.len());
        assert_eq!(of(&hash, cases[0]), of(&hash, cases[0]));
        assert_ne!(
            of(&hash, cases[0]),
            of(&KeyedHash::random(), cases[0]),
            "keyed"
        );
        assert_ne!(hash.of([b"a"]), hash.of([b"a", b""]));
    }

    #[test]
    fn a_shared_key_gives_the_same_hash_everywhere() {
        let hash = KeyedHash::new([7; 16]).of([b"event", b"token"]);
        assert_eq!(hash, KeyedHash::new([7; 16]).of([b"event", b"token"]));
        assert_eq!(Hashed::from_bits(hash.to_bits()), hash);
        // Another release that runs alongside this one must get the same hash.
        assert_eq!(
            format!("{:032x}", hash.to_bits()),
            "d2ce1bd865c18eac008150bb4c53df35"
        );
    }
}
