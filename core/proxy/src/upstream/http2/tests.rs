use super::*;

#[test]
fn what_is_kept_of_an_upload_in_small_pieces_is_moved_seldom() {
    let (mut sent, mut moves, mut capacity) = (Some(Vec::new()), 0, 0);
    for _ in 0..KEPT {
        keep(&mut sent, b"x");
        let grown = sent.as_ref().unwrap().capacity();
        moves += u32::from(std::mem::replace(&mut capacity, grown) != grown);
    }
    assert!(moves < 20 && capacity <= 2 * KEPT, "{moves} times, up to {capacity}");
    keep(&mut sent, b"x");
    assert_eq!(sent, None);
}
