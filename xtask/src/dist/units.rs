//! Units of systemd: one template for each service; what stands behind the `@` is the node's id.

use super::content::File;

/// The services, and what each is for.
const SERVICES: [(&str, &str); 5] = [
    ("cluster-manager", "cluster manager"),
    ("coordinator", "index manager"),
    ("projector", "projector"),
    ("indexer", "indexer"),
    ("catalog", "query catalog"),
];
const UNIT: &str = include_str!("unit.service");
const USER: &str = "u highwater - \"Highwater\" /var/lib/highwater\n";

/// Every file for systemd.
pub fn files() -> Vec<File> {
    let unit = |(service, what): (&str, &str)| {
        let text = UNIT.replace("{service}", service).replace("{what}", what);
        File::text(format!("lib/systemd/system/highwater-{service}@.service"), text)
    };
    let user = File::text("lib/sysusers.d/highwater.conf".into(), USER.into());
    SERVICES.into_iter().map(unit).chain([user]).collect()
}
