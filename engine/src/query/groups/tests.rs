//! Tests of bounds.

use foreshard_actors::segment::{ColumnRange, Location};

use super::*;

fn bounds(min: i64, max: i64) -> Bounds {
    Bounds { min: ScalarValue::from(min), max: ScalarValue::from(max) }
}

#[test]
fn the_share_of_values_between_others_is_zero_only_if_there_can_be_none() {
    for (of, between, share) in [
        ((1, 10), (4, 5), 0.2),
        ((1, 10), (-9, 1), 0.1),
        ((1, 10), (0, 99), 1.0),
        ((1, 10), (11, 12), 0.0),
        ((7, 7), (7, 7), 1.0),
        ((i64::MIN, i64::MAX), (0, 0), 1.0 / 2f64.powi(64)),
    ] {
        let found = bounds(of.0, of.1).share_within(&bounds(between.0, between.1));
        assert!((found - share).abs() < 1e-12 && (found > 0.0) == (share > 0.0), "{found}");
    }
    let text = |text: &str| ScalarValue::from(text);
    let texts = Bounds { min: text("a"), max: text("b") };
    let other = Bounds { min: text("b"), max: text("c") };
    assert_eq!(texts.share_within(&other), 1.0, "how many texts there are is not known");
}

#[test]
fn bounds_hold_what_either_of_two_holds() {
    assert_eq!(bounds(3, 5).hull(&bounds(4, 9)), Some(bounds(3, 9)));
    assert_eq!(bounds(3, 5).hull(&bounds(-1, 0)), Some(bounds(-1, 5)));
    let text = Bounds { min: ScalarValue::from("a"), max: ScalarValue::from("b") };
    assert_eq!(bounds(3, 5).hull(&text), None);
}

#[test]
fn bounds_of_another_type_or_that_are_not_known_are_none() {
    let segment = |min: Option<ScalarValue>| Segment {
        id: SegmentId(1),
        partition: 0,
        rows: 1,
        bytes: 8,
        columns: vec![ColumnRange { min, max: Some(ScalarValue::from(9_i64)), nulls: Some(0) }],
        location: Location::Memory,
        pinned: None,
    };
    let known = segment(Some(ScalarValue::from(2_i64)));
    assert_eq!(Bounds::of(&known, 0, &DataType::Int64), Some(bounds(2, 9)));
    assert_eq!(Bounds::of(&known, 0, &DataType::Int32), None);
    assert_eq!(Bounds::of(&known, 1, &DataType::Int64), None);
    assert_eq!(Bounds::of(&segment(None), 0, &DataType::Int64), None);
    let crossed = segment(Some(ScalarValue::from(10_i64)));
    assert_eq!(Bounds::of(&crossed, 0, &DataType::Int64), None);
}
