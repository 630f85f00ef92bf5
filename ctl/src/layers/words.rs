//! What is by hand, in words.

use super::{InFile, Owner, by_id, by_rule};
use crate::{config::compare, state::State};

impl Owner {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Owner::File => "by the file",
            Owner::Feed => "by a feed",
            Owner::Hand => "by hand",
        }
    }
}

impl State {
    /// The settings that are by hand, a line each.
    pub fn describe_settings_by_hand(&self) -> Vec<String> {
        let settings = self.revision.settings.iter();
        settings.map(|(key, value)| format!("~ setting {key}: {value}")).collect()
    }

    /// What is by hand, a line each: `+` is not in the file, `-` is in the file only, `~` has other keys than there.
    pub fn describe_by_hand(&self) -> Vec<String> {
        let mut lines = self.describe_settings_by_hand();
        for (address, in_file) in &self.by_hand.listeners {
            lines.extend(line(
                &format!("listener {address}"),
                self.listeners.get(address),
                in_file,
                compare::listener,
            ));
        }
        for (name, marks) in &self.by_hand.clusters {
            let cluster = self.clusters.get(name);
            if let Some(own) = &marks.own {
                lines.extend(line(&format!("cluster {name}"), cluster, own, |old, new| {
                    compare::cluster(old, new).unwrap_or_default()
                }));
            }
            if cluster.is_none() {
                // All that it had is gone with it.
                continue;
            }
            let (frontends, backends) = (by_rule(cluster), by_id(cluster));
            for (rule, in_file) in &marks.frontends {
                let what = format!("frontend {rule} of cluster {name}");
                lines.extend(line(&what, frontends.get(rule).copied(), in_file, compare::frontend));
            }
            for (id, in_file) in &marks.backends {
                let what = format!("backend {id} of cluster {name}");
                lines.extend(line(&what, backends.get(id.as_str()).copied(), in_file, compare::backend));
            }
        }
        for (address, marks) in &self.by_hand.certificates {
            for (fingerprint, in_file) in marks {
                let what = format!("certificate {fingerprint} on {address}");
                let present = self.certificate(*address, fingerprint);
                lines.extend(line(&what, present, in_file, |_, _| "names, files or default".to_owned()));
            }
        }
        lines
    }
}

fn line<T>(
    what: &str,
    present: Option<&T>,
    in_file: &InFile<T>,
    keys: impl FnOnce(&T, &T) -> String,
) -> Option<String> {
    Some(match (present, in_file) {
        (Some(_), InFile::Nothing) => format!("+ {what}"),
        (None, InFile::This(_)) => format!("- {what}"),
        (Some(present), InFile::This(in_file)) => format!("~ {what}: {}", keys(in_file, present)),
        (None, InFile::Nothing) => return None,
    })
}
