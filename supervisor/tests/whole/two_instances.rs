//! Two instances with their sockets, records, pid files and saved states in one folder: neither touches what is the other's, whatever
//! they are called.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    time::Duration,
};

use crate::harness::{Backend, Config, Process, Proxy, get, wait};

/// One of them, and what its backend says.
struct Instance {
    proxy: Proxy,
    says: &'static str,
    backend: Backend,
    added: usize,
}

/// Everything that must stay as it is while the other one works: processes, and files by name, inode and content.
#[derive(Debug, PartialEq)]
struct Belongings {
    workers: Vec<u64>,
    state: serde_json::Value,
    files: BTreeMap<String, (u64, Option<String>)>,
}

/// The files in the folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

impl Instance {
    fn start(folder: &Path, socket: &str, says: &'static str) -> Instance {
        let backend = Backend::respond(format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{says}"));
        let path = |name: String| folder.join(name).display().to_string();
        let proxy = Config::to(&backend)
            .root(&format!("command_socket = \"{}\"", path(socket.to_owned())))
            .root(&format!("pid_file_path = \"{}\"", path(format!("{socket}.pid"))))
            .root(&format!("saved_state = \"{}\"", path(format!("{socket}.json"))))
            .root("automatic_state_save = true")
            .root("worker_count = 2")
            .root("graceful_timeout = 2")
            .start();
        let mut instance = Instance { proxy, says, backend, added: 0 };
        instance.change();
        instance
    }

    fn serves(&self) {
        for _ in 0..4 {
            get(&self.proxy, "a", "/").expect(200, self.says);
        }
    }

    /// Adds a backend, and waits until that is saved.
    fn change(&mut self) {
        self.added += 1;
        let id = format!("by-hand-{}", self.added);
        let output = self.proxy.ctl(&["backend", "add", "all", &self.backend.address(), "--id", &id]);
        assert!(output.status.success(), "{output:?}");
        let saved = format!("{}.json", self.proxy.socket().display());
        wait::until("the save", || fs::read_to_string(&saved).is_ok_and(|text| text.contains(&id)));
        self.has_all();
    }

    fn has_all(&self) {
        let backends = self.proxy.ctl_json("state")["clusters"]["all"]["backends"].as_array().map(Vec::len);
        assert_eq!(backends, Some(1 + self.added), "{}", self.proxy.log());
    }

    fn pids(&self) -> Vec<u64> {
        let workers = self.proxy.ctl_json("workers");
        workers.as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap()).collect()
    }

    /// `others` are the files of the other one.
    fn belongings(&self, folder: &Path, others: &[String]) -> Belongings {
        let own = names(folder).into_iter().filter(|name| !others.contains(name));
        let files = own.map(|name| {
            let path = folder.join(&name);
            let about = fs::symlink_metadata(&path).unwrap();
            let content = (!about.file_type().is_socket()).then(|| fs::read_to_string(&path).unwrap());
            (name, (about.ino(), content))
        });
        let files = files.collect();
        Belongings { workers: self.pids(), state: self.proxy.ctl_json("state"), files }
    }

    /// Everything that an instance does with its files and its workers.
    fn do_everything(&mut self) {
        self.change();
        let file = self.proxy.folder().join("kakehi.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}[clusters.more{}]\nprotocol = \"http\"\n", self.added)).unwrap();
        let reloaded = self.proxy.ctl(&["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        let before = self.pids();
        self.proxy.kill_supervisor();
        self.proxy.start_again();
        assert_eq!(self.pids(), before, "they are taken over: {}", self.proxy.log());
        self.has_all();
        self.serves();
        let upgraded = self.proxy.ctl(&["workers", "upgrade"]);
        assert!(upgraded.status.success(), "{upgraded:?}");
        assert!(self.pids().iter().all(|pid| !before.contains(pid)));
        // The processes before have gone with their files.
        wait::until("their end", || before.iter().all(|pid| !Process(*pid as u32).runs()));
        let upgraded = self.proxy.ctl(&["upgrade"]);
        assert!(upgraded.status.success(), "{upgraded:?}");
        self.change();
        self.serves();
    }
}

/// Where each of them has its command socket.
fn share_a_folder([first, second]: [&str; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut one = Instance::start(folder, first, "one");
    let of_one = names(folder);
    let mut two = Instance::start(folder, second, "two");

    let before = one.belongings(folder, &[]).files;
    let of_two: Vec<String> = names(folder).into_iter().filter(|name| !of_one.contains(name)).collect();
    assert!(of_one.iter().all(|name| before.contains_key(name)), "the start of the second took {of_one:?}");
    let before = one.belongings(folder, &of_two);
    two.do_everything();
    let of_two: Vec<String> = names(folder).into_iter().filter(|name| !of_one.contains(name)).collect();
    assert_eq!(one.belongings(folder, &of_two), before);
    one.serves();

    let before = two.belongings(folder, &of_one);
    one.do_everything();
    let of_one: Vec<String> = names(folder).into_iter().filter(|name| !of_two.contains(name)).collect();
    assert_eq!(two.belongings(folder, &of_one), before);
    two.serves();

    // Both supervisors are gone at once; each comes back to its own.
    let before = [one.pids(), two.pids()];
    one.proxy.kill_supervisor();
    two.proxy.kill_supervisor();
    one.proxy.start_again();
    assert!(before[1].iter().all(|pid| Process(*pid as u32).runs()), "workers of the second were ended");
    two.proxy.start_again();
    assert_eq!([one.pids(), two.pids()], before);
    wait::until("nothing is left of what those who were killed were writing", || {
        !names(folder).iter().any(|name| name.ends_with(".new"))
    });
    for instance in [&one, &two] {
        instance.has_all();
        instance.serves();
        let log = instance.proxy.log();
        assert!(!log.contains("cannot be taken over"), "{log}");
    }

    // What they save at a takeover is saved.
    one.change();
    two.change();
    let of_two = two.belongings(folder, &of_one);
    one.proxy.terminate();
    assert_eq!(one.proxy.wait(Duration::from_secs(10)).code(), Some(0), "{}", one.proxy.log());
    let saved = format!("{first}.json");
    assert_eq!(two.belongings(folder, std::slice::from_ref(&saved)), of_two, "what is left is the second's");
    two.serves();
    two.proxy.terminate();
    assert_eq!(two.proxy.wait(Duration::from_secs(10)).code(), Some(0), "{}", two.proxy.log());
    let mut left = names(folder);
    left.sort_unstable();
    let mut expected = [saved, format!("{second}.json")];
    expected.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn two_instances_in_one_folder_touch_nothing_of_each_other() {
    share_a_folder(["kakehi.sock", "kakehi.www.sock"]);
}

#[test]
fn two_instances_of_which_the_name_of_one_begins_the_name_of_the_other_touch_nothing_of_each_other() {
    share_a_folder(["kakehi", "kakehi.www.sock"]);
}

#[test]
fn an_instance_that_is_called_like_a_worker_of_another_one_and_that_other_one_touch_nothing_of_each_other() {
    // Adoption sockets of the second are called `kakehi.w0.w0.0`, those of the first `kakehi.w0.0`.
    share_a_folder(["kakehi.w0", "kakehi"]);
}

#[test]
fn a_command_socket_with_the_whole_name_of_an_adoption_socket_is_left_alone() {
    // What would be that of the first process of the second's third worker.
    share_a_folder(["kakehi.w2.0", "kakehi"]);
}
