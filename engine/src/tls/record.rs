//! How a certificate with its key lies in the vault: in as little memory as it takes, as there may be very many.
//!
//! Certificates of one issuer differ in little but names, keys, dates and signatures, and all are sent with the same
//! chain. So a record has
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the body as it was |
//! | 4 | number of places |
//! | 12 each | places (offset, length): first of the model, then of the certificates that it is sent with |
//! | the rest | the body as an LZ4 block, with the model as dictionary |
//!
//! and its body the length of the certificate in 4 bytes, the certificate, and the key. All numbers are little-endian.
//! The model is a certificate much like it, or itself: never a key, as that would have to outlive its own certificate.

use kakehi_ctl::state::Place;
use lz4_flex::block::{compress_with_dict, decompress_into_with_dict};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Most parts: certificates of a chain, and a key.
const MAX_PARTS: usize = 64;
/// The longest part (bytes). Whoever can write to the vault can have no more than a few of them reserved.
pub(super) const MAX_PART: usize = 1 << 20;
/// The longest certificate with key and chain (bytes).
pub(super) const MAX_WHOLE: usize = 4 << 20;
/// The longest record (bytes): what cannot be made shorter becomes a little longer.
pub(super) const MAX_RECORD: usize = 2 * MAX_PART + MAX_PART / 64;

/// What lies under a certificate's place.
pub struct Stored {
    /// The certificate, and those that it is sent with.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Stored {
    /// Whether it is small enough for a vault.
    pub fn fits(&self) -> bool {
        let all: usize = self.parts().map(|part| part.len() + 4).sum();
        self.parts().all(|part| part.len() <= MAX_PART)
            && all <= MAX_WHOLE
            && self.parts().count() <= MAX_PARTS
    }

    /// The certificates and the key (DER).
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(|der| &**der).chain([self.key.secret_der()])
    }

    /// The bytes that lie in a vault for it: like `model`, which lies at the first of `places`; those that it is sent with
    /// lie at the others.
    pub fn record(&self, places: &[Place], model: &[u8]) -> Vec<u8> {
        let leaf = self.chain.first().map_or(&[][..], |der| der);
        let body = [&number(leaf.len()), leaf, self.key.secret_der()].concat();
        let mut record = [number(body.len()), number(places.len())].concat();
        for Place { offset, length } in places {
            record.extend_from_slice(&offset.to_le_bytes());
            record.extend_from_slice(&length.to_le_bytes());
        }
        record.extend_from_slice(&compress_with_dict(&body, model));
        record
    }
}

/// Of something that fits.
fn number(length: usize) -> [u8; 4] {
    (length as u32).to_le_bytes()
}

/// A record, taken apart as far as that is possible without its model.
pub(super) struct Record<'a> {
    body: usize,
    pub(super) model: Place,
    /// Where those lie that it is sent with.
    pub(super) issuers: Vec<Place>,
    packed: &'a [u8],
}

impl<'a> Record<'a> {
    /// `None`: it is none, or could be longer than any.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (body, rest) = bytes.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (body, count) = (u32::from_le_bytes(*body) as usize, u32::from_le_bytes(*count) as usize);
        let (places, packed) = rest.split_at_checked(count.checked_mul(12)?)?;
        let places = places.chunks_exact(12).map(|place| {
            let (offset, length) = place.split_first_chunk()?;
            Some(Place {
                offset: u64::from_le_bytes(*offset),
                length: u32::from_le_bytes(length.try_into().ok()?),
            })
        });
        let mut places = places.collect::<Option<Vec<_>>>()?.into_iter();
        let (model, issuers) = (places.next()?, places.as_slice().to_vec());
        let of_parts = || issuers.iter().map(|place| place.length as usize);
        let whole = of_parts().fold(body, usize::saturating_add);
        let short = model.length as usize <= MAX_PART && of_parts().all(|length| length <= MAX_PART);
        let fits = short && body <= 2 * MAX_PART + 4 && whole <= MAX_WHOLE && issuers.len() + 2 <= MAX_PARTS;
        fits.then_some(Record { body, model, issuers, packed })
    }

    /// The certificate and its key; `None`: that is not what is in it.
    pub(super) fn unpack(&self, model: &[u8]) -> Option<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let mut body = vec![0; self.body];
        let length = decompress_into_with_dict(self.packed, &mut body, model).ok()?;
        let (leaf, rest) = body.get(..length)?.split_first_chunk()?;
        let (leaf, key) = rest.split_at_checked(u32::from_le_bytes(*leaf) as usize)?;
        let key = PrivateKeyDer::try_from(key.to_vec()).ok()?;
        (length == self.body).then(|| (leaf.to_vec().into(), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a PKCS #8 key, as far as its kind is looked at, with something behind it.
    fn key() -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(vec![0x30, 6, 2, 1, 0, 0x30, 1, 7].into())
    }

    fn stored(parts: &[usize]) -> Stored {
        Stored { chain: parts.iter().map(|length| vec![1; *length].into()).collect(), key: key() }
    }

    /// Bytes that do not become shorter.
    fn noise(length: usize) -> Vec<u8> {
        let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        std::iter::successors(Some(1), next).map(|state| (state >> 56) as u8).take(length).collect()
    }

    #[test]
    fn a_record_is_short_if_its_model_is_like_it_and_is_unpacked_with_that_only() {
        let model = noise(1_000);
        let leaf = [&model[..400], b"another name", &model[400..]].concat();
        let stored = Stored { chain: vec![leaf.clone().into()], key: key() };
        let places = [5, 6, 7].map(|offset| Place { offset, length: 1_000 });
        let bytes = stored.record(&places, &model);
        assert!(bytes.len() < 100, "{}", bytes.len());
        let record = Record::of(&bytes).unwrap();
        assert_eq!((record.model, &record.issuers[..]), (places[0], &places[1..]));
        let (unpacked, its_key) = record.unpack(&model).unwrap();
        assert!(*unpacked == *leaf && its_key == key());
        let another = record.unpack(&vec![0; 1_000]);
        assert!(another.is_none_or(|(unpacked, _)| *unpacked != *leaf));
        assert!(record.unpack(&model[..500]).is_none());
    }

    #[test]
    fn of_a_long_model_its_end_counts() {
        let model = noise(200_000);
        for (from, becomes_short) in [(199_000, true), (0, false)] {
            let leaf = &model[from..from + 1_000];
            let stored = Stored { chain: vec![leaf.to_vec().into()], key: key() };
            let bytes = stored.record(&[Place { offset: 1, length: 200_000 }], &model);
            assert_eq!(bytes.len() < 100, becomes_short, "{}", bytes.len());
            assert_eq!(*Record::of(&bytes).unwrap().unpack(&model).unwrap().0, *leaf);
        }
    }

    #[test]
    fn any_bytes_are_a_record_or_none() {
        let model = noise(300);
        let bytes = Stored { chain: vec![noise(310).into()], key: key() };
        let bytes = bytes.record(&[Place { offset: 1, length: 300 }], &model);
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut wrong = bytes.clone();
                wrong[at] = value;
                let _ = Record::of(&wrong).map(|record| record.unpack(&model));
            }
            let _ = Record::of(&bytes[..at]).map(|record| record.unpack(&model));
        }
    }

    #[test]
    fn what_could_become_longer_than_anything_in_a_vault_is_no_record() {
        let place = |length: usize| Place { offset: 4_096, length: length as u32 };
        let part = place(MAX_PART);
        for (places, is_one) in [
            (vec![part; 4], true),
            (vec![part; 5], false),
            (vec![place(MAX_PART + 1)], false),
            (vec![place(0), place(MAX_PART + 1)], false),
            (vec![place(0); MAX_PARTS - 1], true),
            (vec![place(0); MAX_PARTS], false),
            (vec![], false),
        ] {
            assert_eq!(Record::of(&stored(&[10]).record(&places, &[])).is_some(), is_one, "{places:?}");
        }
        let largest = Stored { chain: vec![noise(MAX_PART).into()], key: key() };
        let record = largest.record(&[place(0)], &[]);
        assert!(largest.fits() && record.len() <= MAX_RECORD && Record::of(&record).is_some());
        let mut huge = record;
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Record::of(&huge).is_none());
        assert!(!stored(&[MAX_PART + 1]).fits() && !stored(&[MAX_PART; 4]).fits());
        assert!(stored(&[1; MAX_PARTS - 1]).fits() && !stored(&[1; MAX_PARTS]).fits());
    }
}
