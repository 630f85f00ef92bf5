//! `split`: clusters among which a frontend divides its requests.

use super::{
    super::{
        error::Quoted,
        read::{Section, Values as _},
    },
    Builder,
};
use crate::state::{ClusterProtocol, Split, SplitPart, State};

impl Builder<'_, '_> {
    /// How requests are divided; `None` if they are not. `forwards`: the frontend does forward.
    pub(super) fn split(&mut self, frontend: &Section, forwards: bool) -> Option<Box<Split>> {
        let sections = frontend.tables("split");
        let mut split = Split::default();
        split.read_keys(frontend, frontend, self.folder);
        if sections.is_empty() {
            if frontend.says("split_key") {
                self.warn_at(frontend, "split_key", "`split_key` has no effect without `split`".to_owned());
            }
            return None;
        }
        for section in sections {
            let (Some(cluster), Some(weight)) = (section.text("cluster"), section.integer("weight")) else {
                SplitPart::REQUIRED.iter().for_each(|key| self.missing(section, key.name));
                continue;
            };
            let cluster = cluster.to_owned();
            self.divided.push((section.offset_of("cluster"), cluster.clone()));
            // The key has no larger ones.
            split.parts.push(SplitPart { cluster, weight: u32::try_from(weight).unwrap_or(u32::MAX) });
        }
        if split.parts.len() < sections.len() {
            return None;
        }
        if let Some((key, reason)) = split.unfit() {
            self.findings.unfit(frontend.offset_of(key), reason);
        }
        if !forwards {
            let text = "`split` has no effect in a frontend that does not forward".to_owned();
            self.warn_at(frontend, "split", text);
            return None;
        }
        Some(Box::new(split))
    }

    /// The clusters that splits name must be there.
    pub(super) fn check_splits(&mut self, state: &State) {
        for (offset, name) in std::mem::take(&mut self.divided) {
            let named = Quoted(&name).to_string();
            let reason = match state.clusters.get(&name).map(|cluster| cluster.protocol) {
                Some(ClusterProtocol::Http) => continue,
                Some(ClusterProtocol::Tcp) => {
                    format!("the cluster {named} is of `tcp`, and takes no requests")
                }
                None => format!("`split` names the cluster {named}, which is not there"),
            };
            self.findings.unfit(offset, reason);
        }
    }
}
