//! How a stability timestamp travels: the wants that its vbuckets have answered are nearly the same in each, and are written
//! once, with how far each vbucket is behind.

use crate::timestamp::{Asked, MOST_CATALOGS, Position, StVb, StabilityTimestamp};
use rkyv::{
    Archive, Deserialize, Place, Serialize,
    rancor::{Fallible, Source, fail},
    with::{ArchiveWith, DeserializeWith, SerializeWith},
};

/// A vbucket is that far behind, or has not answered: nothing is said of it. Its next answer tells.
const UNSAID: u16 = u16::MAX;

/// A timestamp as [`Packed`].
pub(super) struct PackedTimestamp;

#[derive(Archive, Serialize, Deserialize)]
pub(super) struct Packed {
    number: u64,
    term: u64,
    wanted: bool,
    persist: bool,
    vbs: Vec<PackedVb>,
    /// Each catalog, rising, with the newest of its wants that any vbucket has answered.
    catalogs: Vec<Asked>,
    /// By vbucket and then by catalog, how many wants its newest answer is behind that, or [`UNSAID`].
    behind: Vec<u16>,
}

#[derive(Archive, Serialize, Deserialize)]
pub(super) struct PackedVb {
    vbuuid: u64,
    generation: u64,
    position: Position,
    covered: u64,
    server_time: i64,
    hash: u64,
    created: i64,
    floor: u64,
    reconciled: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("contradictory content: the wants of a timestamp")]
struct Contradiction;

impl From<&StabilityTimestamp> for Packed {
    fn from(st: &StabilityTimestamp) -> Self {
        let mut catalogs: Vec<Asked> = Vec::new();
        for asked in st.vbs.iter().flat_map(|vb| &vb.asked) {
            match catalogs.iter_mut().find(|known| known.catalog == asked.catalog) {
                Some(known) => known.seq = known.seq.max(asked.seq),
                None => catalogs.push(*asked),
            }
        }
        // The coordinator remembers no more.
        catalogs.truncate(MOST_CATALOGS);
        catalogs.sort_unstable_by_key(|asked| asked.catalog);
        let behind = st.vbs.iter().flat_map(|vb| {
            catalogs.iter().map(|newest| {
                let own = vb.asked.iter().find(|asked| asked.catalog == newest.catalog);
                own.and_then(|own| u16::try_from(newest.seq - own.seq).ok()).unwrap_or(UNSAID)
            })
        });
        let behind = behind.collect();
        let vbs = st.vbs.iter().map(|vb| PackedVb {
            vbuuid: vb.vbuuid,
            generation: vb.generation,
            position: vb.position,
            covered: vb.covered,
            server_time: vb.server_time,
            hash: vb.hash,
            created: vb.created,
            floor: vb.floor,
            reconciled: vb.reconciled,
        });
        let vbs = vbs.collect();
        Self { number: st.number, term: st.term, wanted: st.wanted, persist: st.persist, vbs, catalogs, behind }
    }
}

impl Packed {
    fn unpack(self) -> Result<StabilityTimestamp, Contradiction> {
        let rise = self.catalogs.is_sorted_by(|a, b| a.catalog < b.catalog) && self.catalogs.len() <= MOST_CATALOGS;
        if !rise || self.behind.len() != self.vbs.len() * self.catalogs.len() {
            return Err(Contradiction);
        }
        let newest = self.catalogs.iter().cycle();
        if newest.zip(&self.behind).any(|(newest, behind)| *behind != UNSAID && u64::from(*behind) > newest.seq) {
            return Err(Contradiction);
        }
        let mut behind = self.behind.into_iter();
        let vbs = self.vbs.into_iter().map(|vb| {
            let asked = self.catalogs.iter().zip(&mut behind).filter(|(_, behind)| *behind != UNSAID);
            let asked =
                asked.map(|(newest, behind)| Asked { catalog: newest.catalog, seq: newest.seq - u64::from(behind) });
            StVb {
                vbuuid: vb.vbuuid,
                generation: vb.generation,
                position: vb.position,
                covered: vb.covered,
                server_time: vb.server_time,
                hash: vb.hash,
                created: vb.created,
                asked: asked.collect(),
                floor: vb.floor,
                reconciled: vb.reconciled,
            }
        });
        let vbs = vbs.collect();
        Ok(StabilityTimestamp { number: self.number, term: self.term, wanted: self.wanted, persist: self.persist, vbs })
    }
}

impl ArchiveWith<StabilityTimestamp> for PackedTimestamp {
    type Archived = ArchivedPacked;
    type Resolver = PackedResolver;

    fn resolve_with(field: &StabilityTimestamp, resolver: Self::Resolver, out: Place<Self::Archived>) {
        Packed::from(field).resolve(resolver, out);
    }
}

impl<S: Fallible + ?Sized> SerializeWith<StabilityTimestamp, S> for PackedTimestamp
where
    Packed: Serialize<S>,
{
    fn serialize_with(field: &StabilityTimestamp, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        Packed::from(field).serialize(serializer)
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedPacked, StabilityTimestamp, D> for PackedTimestamp
where
    ArchivedPacked: Deserialize<Packed, D>,
    D::Error: Source,
{
    fn deserialize_with(field: &ArchivedPacked, deserializer: &mut D) -> Result<StabilityTimestamp, D::Error> {
        match field.deserialize(deserializer)?.unpack() {
            Ok(st) => Ok(st),
            Err(error) => fail!(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MOST_NAMED, Stability, decode, encode};
    use super::*;
    use crate::definition::MAX_VBUCKETS;

    /// With this many vbuckets and catalogs; a vbucket has answered the fewer wants the higher it is.
    fn stability(vbs: usize, catalogs: usize, named: usize) -> Stability {
        let asked =
            |vb: u64| (0..catalogs as u64).map(move |c| Asked { catalog: c << 40, seq: 1_000_000 * c + 500 - vb });
        let vb = |vb: usize| StVb {
            vbuuid: u64::MAX - vb as u64,
            generation: u64::MAX,
            position: Position::new(u64::MAX, 7),
            covered: u64::MAX - 9,
            server_time: i64::MAX,
            hash: u64::MAX,
            created: i64::MAX,
            asked: asked(vb as u64).collect(),
            floor: 5,
            reconciled: u64::MAX,
        };
        let st = StabilityTimestamp {
            number: u64::MAX,
            term: 3,
            wanted: true,
            persist: true,
            vbs: (0..vbs).map(vb).collect(),
        };
        let wanted = (0..named as u64).map(|n| u64::MAX - 1 - n).collect();
        Stability { bucket: "b".repeat(64), st, wanted }
    }

    #[test]
    fn a_broadcast_stays_below_16_kib_at_every_bound() {
        for (catalogs, most) in [(20, 10 * 1_024), (MOST_CATALOGS, 16 * 1_024)] {
            let largest = stability(MAX_VBUCKETS, catalogs, MOST_NAMED);
            let bytes = encode(&largest);
            assert!(bytes.len() < most, "{catalogs} catalogs: {} bytes", bytes.len());
            assert_eq!(decode::<Stability>(&bytes), Ok(largest));
        }
        // One catalog more is not told of, whose want is repeated.
        let beyond = encode(&stability(MAX_VBUCKETS, MOST_CATALOGS + 1, MOST_NAMED));
        assert!(beyond.len() < 16 * 1_024);
        let read = decode::<Stability>(&beyond).unwrap();
        assert!(read.st.vbs.iter().all(|vb| vb.asked.len() == MOST_CATALOGS));
    }

    #[test]
    fn what_a_vbucket_has_not_answered_or_long_ago_is_not_said() {
        let asked = |catalog, seq| Asked { catalog, seq };
        let vb = |asked: &[Asked]| StVb { asked: asked.to_vec(), ..StVb::default() };
        let st = StabilityTimestamp {
            vbs: vec![
                vb(&[asked(1, 70_000), asked(2, 5)]),
                vb(&[asked(1, 70_000 - u64::from(UNSAID) + 1)]),
                vb(&[asked(1, 70_000 - u64::from(UNSAID)), asked(2, 4)]),
                vb(&[]),
            ],
            ..StabilityTimestamp::default()
        };
        let told =
            decode::<Stability>(&encode(&Stability { bucket: "b".into(), st: st.clone(), wanted: vec![] })).unwrap();
        let mut expected = st;
        expected.vbs[2].asked.remove(0);
        assert_eq!(told.st, expected);
    }

    #[test]
    fn wants_that_contradict_themselves_are_refused() {
        let spoilt = |spoil: fn(&mut Packed)| {
            let mut packed = Packed::from(&stability(2, 3, 0).st);
            spoil(&mut packed);
            packed.unpack().is_err()
        };
        assert!(!spoilt(|_| {}));
        assert!(spoilt(|packed| _ = packed.behind.pop()));
        assert!(spoilt(|packed| packed.catalogs.swap(0, 1)));
        assert!(spoilt(|packed| packed.catalogs[1].catalog = packed.catalogs[0].catalog));
        assert!(spoilt(|packed| packed.catalogs[0].seq = 0));
    }
}
