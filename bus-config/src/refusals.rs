//! What NATS does not permit this user. The server says so once, on the connection, and who waits for an answer gets none.

use crate::{api_prefix::ApiPrefix, error::BusError, troubles::Troubles};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::sync::watch;

/// Refusals that are remembered; the oldest go first.
const MOST_REMEMBERED: usize = 256;
const BEGINS: &str = "permissions violation for ";

/// What a user may be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Publish,
    Subscribe,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        })
    }
}

/// A permission that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) action: Action,
    pub(crate) subject: String,
}

impl Refusal {
    /// Reads `Permissions Violation for Publish to "a.b"` and the like; None: it is another error.
    fn of(words: &str) -> Option<Self> {
        let (begins, rest) = words.split_at_checked(BEGINS.len())?;
        let action = match rest.split(' ').next()? {
            word if word.eq_ignore_ascii_case("publish") => Action::Publish,
            word if word.eq_ignore_ascii_case("subscription") => Action::Subscribe,
            _ => return None,
        };
        let subject = rest.split('"').nth(1)?.to_owned();
        begins.eq_ignore_ascii_case(BEGINS).then_some(Self { action, subject })
    }

    /// The name under which it is stated. The names of inboxes and consumers are random, and left out.
    fn title(&self, api: &ApiPrefix) -> String {
        let subject = &self.subject;
        let first = subject.split('.').next().unwrap_or_default();
        let subject = if let Some(consumer) = consumer(subject) {
            format!("{}>", subject.strip_suffix(consumer).unwrap_or(subject))
        } else if first == subject || first == "hw" || first.starts_with('$') || api.covers(subject) {
            subject.clone()
        } else {
            format!("{first}.>")
        };
        format!("permission to {} to {subject}", self.action)
    }
}

/// The name of the consumer that a request is about: that of a reader, a new one each time.
fn consumer(subject: &str) -> Option<&str> {
    let (_, request) = subject.split_once(".CONSUMER.")?;
    let about = ["MSG.NEXT.", "DELETE.", "INFO."].into_iter().find_map(|verb| request.strip_prefix(verb))?;
    about.split_once('.').map(|(_, consumer)| consumer)
}

impl From<Refusal> for BusError {
    fn from(Refusal { action, subject }: Refusal) -> Self {
        Self::NotPermitted { action, subject }
    }
}

/// The refusals of a process's connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    api: ApiPrefix,
    /// Each with its number. One takes the place of an earlier one of the same subject; subscriptions stay longest, as they are
    /// refused once for each connection.
    remembered: Mutex<VecDeque<(u64, Refusal)>>,
    /// The number of the last one.
    last: watch::Sender<u64>,
}

impl Refusals {
    pub(crate) fn new(api: ApiPrefix) -> Self {
        Self(Arc::new(Shared { api, ..Shared::default() }))
    }

    fn remembered(&self) -> MutexGuard<'_, VecDeque<(u64, Refusal)>> {
        self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server said this on a connection: it is stated, and remembered if it is a refusal.
    pub(crate) fn said(&self, words: &str, troubles: &Troubles) {
        let now = Instant::now();
        let Some(refusal) = Refusal::of(words) else { return troubles.happened("answers of NATS", &words, now) };
        let title = refusal.title(&self.0.api);
        troubles.happened(&title, &words, now);
        let mut remembered = self.remembered();
        if !remembered.iter().any(|(_, known)| known.title(&self.0.api) == title) {
            tracing::warn!(subject = refusal.subject, "NATS does not permit this user to {}", refusal.action);
        }
        remembered.retain(|(_, known)| *known != refusal);
        if remembered.len() >= MOST_REMEMBERED {
            let published = remembered.iter().position(|(_, known)| known.action == Action::Publish);
            remembered.remove(published.unwrap_or_default());
        }
        let number = *self.0.last.borrow() + 1;
        remembered.push_back((number, refusal));
        drop(remembered);
        self.0.last.send_replace(number);
    }

    /// The client library has connected, and subscribes anew.
    pub(crate) fn connected(&self) {
        self.remembered().retain(|(_, refusal)| refusal.action == Action::Publish);
    }

    /// The number of the last refusal.
    pub(crate) fn last(&self) -> u64 {
        *self.0.last.borrow()
    }

    /// What keeps an answer away that is waited for since refusal number `since`: what was asked may not be published, or the
    /// answer may not be subscribed to.
    pub(crate) fn found(&self, since: u64, published: impl Fn(&str) -> bool, inbox_prefix: &str) -> Option<Refusal> {
        self.newest(|number, refusal| match refusal.action {
            Action::Publish => number > since && published(&refusal.subject),
            Action::Subscribe => is_for_answers(&refusal.subject, inbox_prefix),
        })
    }

    /// The same of a question whose answers come to a subject of its own.
    pub(crate) fn found_on(&self, since: u64, asked: &str, answers: &str) -> Option<Refusal> {
        self.newest(|number, refusal| match refusal.action {
            Action::Publish => number > since && refusal.subject == asked,
            Action::Subscribe => refusal.subject == answers,
        })
    }

    /// Waits for such a refusal.
    pub(crate) async fn wait_on(&self, since: u64, asked: &str, answers: &str) -> Refusal {
        self.until(|| self.found_on(since, asked, answers)).await
    }

    async fn until(&self, found: impl Fn() -> Option<Refusal>) -> Refusal {
        let mut last = self.0.last.subscribe();
        loop {
            if let Some(refusal) = found() {
                return refusal;
            }
            // The sender is ours.
            let _ = last.changed().await;
        }
    }

    fn newest(&self, matters: impl Fn(u64, &Refusal) -> bool) -> Option<Refusal> {
        let remembered = self.remembered();
        remembered.iter().rev().find(|(number, refusal)| matters(*number, refusal)).map(|(_, refusal)| refusal.clone())
    }

    /// Waits for such a refusal.
    pub(crate) async fn wait(&self, since: u64, published: impl Fn(&str) -> bool, inbox_prefix: &str) -> Refusal {
        self.until(|| self.found(since, &published, inbox_prefix)).await
    }
}

/// Whether it is the subscription by which the client library gets all answers, `<prefix>.<id>.*`.
fn is_for_answers(subject: &str, inbox_prefix: &str) -> bool {
    subject.strip_prefix(inbox_prefix).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Option<(Action, String)> {
        Refusal::of(words).map(|refusal| (refusal.action, refusal.subject))
    }

    #[test]
    fn the_server_names_the_subject() {
        for (words, action, subject) in [
            ("Permissions Violation for Publish to \"$JS.API.INFO\"", Action::Publish, "$JS.API.INFO"),
            ("Permissions Violation for Subscription to \"_INBOX.a.*\"", Action::Subscribe, "_INBOX.a.*"),
            ("Permissions Violation for Subscription to \"hw.a\" using queue \"q\"", Action::Subscribe, "hw.a"),
            ("permissions violation for publish with reply of \"r.1\"", Action::Publish, "r.1"),
        ] {
            assert_eq!(of(words), Some((action, subject.into())), "{words}");
        }
        for other in ["", "Authorization Violation", "Permissions Violation", "Permissions Violation for Publish to x"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn what_has_a_new_name_each_time_is_stated_once() {
        let api = ApiPrefix::new(None, Some("js.hub")).unwrap();
        for (subject, title) in [
            ("$JS.API.CONSUMER.MSG.NEXT.KV_b.aB3x", "$JS.API.CONSUMER.MSG.NEXT.KV_b.>"),
            ("js.hub.CONSUMER.MSG.NEXT.S.x", "js.hub.CONSUMER.MSG.NEXT.S.>"),
            ("$JS.API.CONSUMER.DELETE.S.x", "$JS.API.CONSUMER.DELETE.S.>"),
            ("$JS.API.CONSUMER.CREATE.S", "$JS.API.CONSUMER.CREATE.S"),
            ("js.hub.STREAM.INFO.S", "js.hub.STREAM.INFO.S"),
            ("hw.want.b", "hw.want.b"),
            ("mine.17.3", "mine.>"),
            ("one", "one"),
        ] {
            let refusal = Refusal { action: Action::Publish, subject: subject.into() };
            assert_eq!(refusal.title(&api), format!("permission to publish to {title}"));
        }
    }

    #[tokio::test]
    async fn who_waits_hears_of_what_keeps_the_answer_away() {
        let (refusals, troubles) = (Refusals::default(), Troubles::default());
        let publish = "Permissions Violation for Publish to \"hw.a\"";
        refusals.said(publish, &troubles);
        let since = refusals.last();
        assert_eq!(refusals.found(since, |s| s == "hw.a", "_INBOX"), None, "it was refused to another one before");
        let waiting = refusals.wait(since, |s| s == "hw.a", "_INBOX");
        let (refusal, ()) = tokio::join!(waiting, async { refusals.said(publish, &troubles) });
        assert_eq!((refusal.action, refusal.subject.as_str()), (Action::Publish, "hw.a"));
        // Without a subscription no later answer comes either, until the next connection.
        refusals.said("Permissions Violation for Subscription to \"_INBOX.one\"", &troubles);
        assert_eq!(refusals.found(refusals.last(), |_| false, "_INBOX"), None);
        refusals.said("Permissions Violation for Subscription to \"_INBOX.x.*\"", &troubles);
        assert!(refusals.found(refusals.last(), |_| false, "_INBOX").is_some());
        assert_eq!(refusals.found(refusals.last(), |_| false, "_IN"), None);
        for n in 0..2 * MOST_REMEMBERED {
            refusals.said(&format!("Permissions Violation for Publish to \"hw.{n}\""), &Troubles::default());
        }
        assert!(refusals.found(refusals.last(), |_| false, "_INBOX").is_some(), "others have pushed it out");
        refusals.connected();
        assert_eq!(refusals.found(refusals.last(), |_| false, "_INBOX"), None);
        for n in 0..2 * MOST_REMEMBERED {
            refusals.said(&format!("Permissions Violation for Publish to \"_INBOX.{n}\""), &troubles);
        }
        assert_eq!(refusals.remembered().len(), MOST_REMEMBERED);
        let stated = troubles.list(Instant::now());
        assert!(stated.iter().any(|trouble| trouble.what == "permission to publish to _INBOX.>"), "{stated:?}");
    }
}
