//! What must hold of every stability timestamp that a readable slice shows, and when everything rests.

use super::{
    env::{Env, Request},
    source::{KEYS, Source},
    store::Store,
};
use highwater_schemas::{StVb, StabilityTimestamp};

/// Since when what vanishes from a source without a message may still be shown, in steps.
fn reconciled(env: &Env, st: &StVb) -> u64 {
    let began = |id| env.began.get(&id).copied().unwrap_or(0);
    began(st.vbuuid).max(began(st.reconciled))
}

/// A readable slice shows a timestamp.
pub fn shown(env: &mut Env, node: &str, store: &Store, st: &StabilityTimestamp) {
    let who = format!("{node} {}.{}", store.name.index, store.name.partition);
    env.count("timestamps shown");
    for (vb, state) in st.vbs.iter().enumerate() {
        whole(env, &who, st.number, (vb, state));
        exact(env, &who, store, st.number, (vb, state));
        agrees(env, &who, store, st.number, (vb, state));
    }
    let served: Vec<Request> = env.requests.iter().filter(|r| serves(r, st)).cloned().collect();
    for request in served {
        env.count("requests served");
        for (vb, state) in st.vbs.iter().enumerate() {
            fresh(env, &who, store, &request, st.number, (vb, state));
        }
    }
}

/// I6: none lies inside of an atomic batch.
fn whole(env: &mut Env, who: &str, number: u64, (vb, st): (usize, &StVb)) {
    let at = st.position;
    let place = env.places.get(&(vb as u16, st.vbuuid, st.generation, at.seqno, at.round)).copied();
    let Some(place) = place else { return };
    if env.sources[vb].is_inside(place.line, at.seqno) {
        env.violated(format!("I6: {who} at {number} {st:?}: inside of a batch of {vb}"));
    }
    if env.sources[vb].is_of_a_batch(place.line, at.seqno) {
        env.count("timestamps at the end of a batch");
    }
}

/// I2: one at which nothing is hidden equals the source.
fn exact(env: &mut Env, who: &str, store: &Store, number: u64, (vb, st): (usize, &StVb)) {
    let at = st.position;
    if st.covered != at.seqno {
        return;
    }
    let Some(place) = env.places.get(&(vb as u16, st.vbuuid, st.generation, at.seqno, at.round)).copied() else {
        env.count("timestamps of unknown places");
        return;
    };
    env.count("exact");
    let since = reconciled(env, st);
    for key in (0..KEYS).filter(|key| store.hosts(&Source::docid(*key))) {
        let source = &env.sources[vb];
        let found = store.value(vb as u16, &Source::docid(key));
        let there = source.truth(place.line, at.seqno, key);
        let (touched, now) = (source.touched(key), source.of_key(key));
        if found.is_some_and(|(seqno, _)| seqno < st.floor) {
            env.violated(format!("I2: {who} at {number} {st:?}: d{key} of {vb} is {found:?}, below the floor"));
        }
        if found != there && touched < since {
            env.violated(format!(
                "I2: {who} at {number} {st:?}: d{key} of {vb} is {found:?}, was {there:?} in the source, there now {now:?}; touched {touched}, reconciled {since}"
            ));
        }
    }
}

/// I3: the slices of all indexes agree.
fn agrees(env: &mut Env, who: &str, store: &Store, number: u64, (vb, st): (usize, &StVb)) {
    let since = reconciled(env, st);
    for key in (0..KEYS).filter(|key| store.hosts(&Source::docid(*key))) {
        let found = store.value(vb as u16, &Source::docid(key));
        let excused = env.sources[vb].touched(key) >= since;
        let first = env.seen.entry((number, vb as u16, key)).or_insert_with(|| (found, who.to_owned()));
        if first.0 != found && !excused {
            let first = first.clone();
            env.violated(format!("I3: at {number} {st:?}: d{key} of {vb} is {found:?} at {who}, and {first:?}"));
        }
    }
}

/// Whether a catalog would answer a request with it.
fn serves(request: &Request, st: &StabilityTimestamp) -> bool {
    st.vbs.iter().zip(&request.vbs).all(|(state, (last, _, vbuuid, created, last_time, run_since))| {
        let asked = state.asked.first().map_or(0, |a| a.seq);
        let same_last = state.position.seqno == *last && (*last == 0 || state.server_time == *last_time);
        state.vbuuid == *vbuuid
            && state.created == *created
            && state.covered >= *last
            && (asked >= request.since || same_last && asked >= *run_since)
    })
}

/// I1: what serves a request is as new as the source was before it.
fn fresh(env: &mut Env, who: &str, store: &Store, request: &Request, number: u64, (vb, st): (usize, &StVb)) {
    let (last, line, ..) = request.vbs[vb];
    let source = &env.sources[vb];
    if source.line() != line {
        return;
    }
    let mut wrong = Vec::new();
    for key in (0..KEYS).filter(|key| store.hosts(&Source::docid(*key))) {
        let found = store.value(vb as u16, &Source::docid(key)).map(|(seqno, _)| seqno);
        let (newest, deleted_later, gone_later) = source.since(line, last, key);
        if gone_later {
            continue;
        }
        let good = match newest {
            Some((seqno, message)) if message.put => found.is_some_and(|f| f >= seqno) || deleted_later,
            Some((seqno, _)) => found.is_none_or(|f| f > seqno) || source.touched(key) >= reconciled(env, st),
            None => found.is_none_or(|f| f > last) || source.touched(key) >= reconciled(env, st),
        };
        if !good {
            wrong.push(format!(
                "I1: {who} at {number} {st:?} serves {request:?}: d{key} of {vb} is {found:?}, was {newest:?}"
            ));
        }
    }
    for why in wrong {
        env.violated(why);
    }
}

/// I4: at rest a slice equals a fresh build.
pub fn rests(env: &mut Env, node: &str, store: &Store) {
    for vb in 0..env.sources.len() {
        let source = &env.sources[vb];
        let there = source.current();
        let mut wrong = Vec::new();
        for key in (0..KEYS).filter(|key| store.hosts(&Source::docid(*key))) {
            let found = store.value(vb as u16, &Source::docid(key));
            let wanted = there.iter().find(|(_, m)| m.key == key && m.put).map(|(seq, m)| (*seq, m.uid));
            if found != wanted {
                wrong.push(format!(
                    "I4: {node} {:?} rests with d{key} of {vb} {found:?}, in the source {wanted:?}",
                    store.name
                ));
            }
        }
        for why in wrong {
            env.violated(why);
        }
    }
}
