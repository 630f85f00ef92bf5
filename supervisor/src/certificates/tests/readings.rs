//! What was read of a file earlier never takes the place of what was read later.

use super::*;
use crate::certificates::watch::Changed;

/// What the watch finds not to be as it was.
async fn looked(keeper: &mut Keeper, state: &State) -> Vec<Changed> {
    keeper.look_at_files(state);
    keeper.watching.changed().await
}

/// Makes what was seen part of the state; how many changes that takes.
fn taken(keeper: &mut Keeper, state: &mut State, seen: Vec<Changed>) -> usize {
    let mut count = 0;
    for seen in seen {
        let (changes, _) = keeper.take_anew(state, seen).unwrap();
        changes.iter().for_each(|change| state.apply(change).unwrap());
        keeper.settle(true);
        count += changes.len();
    }
    count
}

fn with_issuers(ca: &Path) -> State {
    let auth = ClientAuth { ca: material(ca), required: true, ..ClientAuth::default() };
    let tls = Tls { client_auth: Some(auth), ..Tls::default() };
    let mut state = State::default();
    state.listeners.insert(address(443), Listener { tls: Some(tls.into()), ..https(443) });
    state
}

fn digest(state: &State) -> &str {
    let tls = state.listeners[&address(443)].tls.as_ref().unwrap();
    &tls.client_auth.as_ref().unwrap().ca.digest
}

#[tokio::test]
async fn issuers_that_were_read_before_a_reload_do_not_go_over_those_that_it_has_read() {
    let folder = TempDir::new().unwrap();
    let [one, two, three] = ["1", "2", "3"].map(|name| Authority::new(name).certificate);
    let ca = write(&folder, "ca.pem", &one);
    let (mut keeper, mut state) = (keeper(), with_issuers(&ca));
    keeper.furnish(&mut state, Vec::new(), Depth::Few).unwrap();
    // Seen by the watch, which has to wait; meanwhile a reload reads what comes after.
    write(&folder, "ca.pem", &two);
    let seen = looked(&mut keeper, &state).await;
    assert_eq!(seen.len(), 1);
    write(&folder, "ca.pem", &three);
    let mut reloaded = with_issuers(&ca);
    keeper.furnish(&mut reloaded, Vec::new(), Depth::Few).unwrap();
    keeper.settle(true);
    let newest = digest(&reloaded).to_owned();
    assert_eq!(taken(&mut keeper, &mut reloaded, seen), 0);
    assert_eq!(digest(&reloaded), newest);
    assert_eq!(looked(&mut keeper, &reloaded).await.len(), 0, "nothing has changed since");
    // What was read later is taken, as ever.
    write(&folder, "ca.pem", &one);
    let seen = looked(&mut keeper, &reloaded).await;
    assert_eq!(taken(&mut keeper, &mut reloaded, seen), 1);
    assert_eq!(digest(&reloaded), digest(&state));
}

#[tokio::test]
async fn a_certificate_that_was_read_before_does_not_go_over_one_that_was_read_or_sent_later() {
    let folder = TempDir::new().unwrap();
    let [one, two, three] = [(); 3].map(|()| made(&["a.example"]));
    let files = write_pair(&folder, "a", &one);
    let mut keeper = keeper();
    let (state, _) = load(&mut keeper, &[wanted(443, &files), wanted(444, &files)], Depth::Few).unwrap();
    write_pair(&folder, "a", &two);
    let seen = looked(&mut keeper, &state).await;
    assert_eq!(seen.len(), 2);
    // By hand, one listener gets what comes after.
    write_pair(&folder, "a", &three);
    let mut sent = state.clone();
    let replaced = find(&state, address(443), "a.example").unwrap().0.to_string();
    let by_hand = Wanted::from(kakehi_ctl::order::Request::AddCertificate {
        address: address(443),
        chain: Pem(three.certificate.clone()),
        key: Pem(three.key.clone()),
        files: Some(files.clone()),
        names: Vec::new(),
        default: false,
        replaces: Some(replaced),
    })
    .unwrap();
    make(&mut keeper, &mut sent, &by_hand).unwrap();
    keeper.settle(true);
    let newest = find(&sent, address(443), "a.example").unwrap().0;
    assert_eq!(taken(&mut keeper, &mut sent, seen), 0);
    assert_eq!(find(&sent, address(443), "a.example").unwrap().0, newest);
    // And the other listener is not forgotten.
    let seen = looked(&mut keeper, &sent).await;
    assert!(taken(&mut keeper, &mut sent, seen) > 0);
    assert_eq!(find(&sent, address(444), "a.example").unwrap().0, newest);
}
