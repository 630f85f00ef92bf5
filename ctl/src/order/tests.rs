//! Orders in parts, and what older programs say.

use super::*;

#[test]
fn many_changes_are_told_in_parts_that_make_up_the_whole() {
    let change = |port: usize| Change::RemoveListener { address: ([127, 0, 0, 1], port as u16).into() };
    for count in [0, 1, CHANGES_PER_ORDER, CHANGES_PER_ORDER + 1, 3 * CHANGES_PER_ORDER] {
        let changes: Vec<Change> = (1..=count).map(change).collect();
        let whole = Order::Prepare { staged: 0, changes: changes.clone(), revision: Revision::default() };
        let parts = whole.in_parts();
        let mut told = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let (last, part) = match part {
                Order::Stage { changes } => (false, changes),
                Order::Prepare { staged, changes, .. } => {
                    assert_eq!(*staged, told.len());
                    (true, changes)
                }
                other => panic!("{other:?}"),
            };
            assert!(last == (number + 1 == parts.len()) && part.len() <= CHANGES_PER_ORDER);
            told.extend_from_slice(part);
        }
        assert_eq!(told, changes);
    }
    assert_eq!(Order::Ping.in_parts(), [Order::Ping]);
}
