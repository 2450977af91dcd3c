//! The server's side of requests, and the troubles that they meet on the way there and back.

use crate::{
    message::{Answer, Ask, Purpose, Request},
    node::Node,
    world::{Event, World},
};
use highwater_coordinator::manager::Outcome;

impl World {
    /// Asks the server.
    pub(crate) fn request(&mut self, from: Node, purpose: Purpose, request: Request, patience: u64) {
        let ask = self.ask(from, purpose, patience);
        let Some(mut at) = self.network.leaves(from, self.now, &mut self.rng) else { return };
        let trouble = self.rng.chance(self.plan.request_trouble);
        let append = matches!(request, Request::Append { .. });
        if trouble && !self.calm {
            match self.rng.below(4) {
                // Lost on the way.
                0 => return,
                // Held up, maybe for longer than anyone waits.
                1 => at += self.rng.range(10, if append { 8_000 } else { 3_000 }),
                2 if append => {
                    self.queue.push(
                        at,
                        Event::Answer {
                            ask,
                            epoch: None,
                            answer: Answer::Appended(Outcome::Refused("too many requests".into())),
                        },
                    );
                    return;
                }
                _ => at += self.rng.range(1, 200),
            }
        }
        // What is sent when the connection is there again reaches the server's next life too.
        let epoch = if self.network.cut_until(from, self.now).is_some() { 0 } else { self.epoch };
        self.queue.push(at, Event::Request { from, ask, epoch, request });
    }

    pub(crate) fn serve(&mut self, from: Node, ask: Ask, request: Request) {
        let now = self.now;
        let answer = match request {
            Request::Append { losses, .. } if losses != self.log.losses && !self.limits.stale => {
                self.invariants.count("appends that the log's loss overtook", 1);
                return;
            }
            Request::Append { expected, payload, rollup, .. } => {
                if self.log.created == 0 {
                    Answer::Appended(Outcome::Refused("no stream".into()))
                } else {
                    // What is refused says nothing about who holds what was lost.
                    if expected == self.log.last_seq {
                        self.before_append(&payload);
                        self.before_assignment(&payload);
                    }
                    match self.log.append(expected, &payload, rollup) {
                        Ok(Ok(seq)) => {
                            self.wake_followers();
                            Answer::Appended(Outcome::Acked(seq))
                        }
                        Ok(Err(_)) => Answer::Appended(Outcome::Moved),
                        Err(why) => {
                            self.fail(format!("{from} appended: {why}"));
                            return;
                        }
                    }
                }
            }
            Request::ReadAt(seq) => Answer::Found(self.log.at(seq)),
            Request::ReadLog => {
                if self.log.created == 0 {
                    self.log.ensure();
                    self.wake_followers();
                }
                Answer::Contents(self.log.last_seq, self.log.records.values().cloned().collect())
            }
            Request::Look => Answer::Seen(self.bucket.look(now)),
            Request::Write { lease, expected } => {
                let late = self.rng.below(500);
                Answer::Written(self.bucket.write(now, lease, expected, late))
            }
            Request::Release(revision) => {
                self.bucket.release(revision);
                Answer::Done
            }
            Request::MakeBucket => Answer::Made(self.bucket.ensure()),
            Request::Register(node) => Answer::Registered(self.bucket.register(&node)),
            Request::List => Answer::Names(self.bucket.registered()),
            Request::Streams => Answer::Done,
        };
        let mut at = now + self.rng.below(self.network.delay + 1);
        if self.rng.chance(self.plan.request_trouble) && !self.calm {
            if self.rng.chance(500) {
                // The answer is lost.
                return;
            }
            at += self.rng.range(10, 3_000);
        }
        self.queue.push(at, Event::Answer { ask, epoch: Some(self.epoch), answer });
    }

    /// The server restarts: what was on its way is gone, and every connection is there again a little later.
    pub(crate) fn restart_server(&mut self, down: u64) {
        self.epoch += 1;
        for node in self.nodes() {
            let until = self.now + down + self.rng.below(800);
            let keeps = self.rng.chance(300);
            self.network.cut(node, until, keeps);
        }
        self.wake_followers();
    }
}
