//! Every row has exactly one partition, and only rows of partitions that are split or merged move.

use std::sync::Arc;

use arrow::array::{AsArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use proptest::prelude::*;

use foreshard_policy::key_ranges::{Edge, KeyRange};
use foreshard_policy::reshape::cut::Even;

use super::*;

const ROWS: i64 = 300;

fn batch() -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("v", DataType::Float64, true),
    ]);
    let v = |i: i64| match i % 50 {
        3 => None,
        4 => Some(f64::NAN),
        5 => Some(-0.0),
        6 => Some(0.0),
        _ => Some((i % 100) as f64 - 40.0),
    };
    RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(Int64Array::from_iter((0..ROWS).map(|i| (i % 100 != 7).then_some(i)))),
            Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| format!("näme {i}")))),
            Arc::new(Float64Array::from_iter((0..ROWS).map(v))),
        ],
    )
    .unwrap()
}

fn hash(column: &str, partitions: u32) -> Layout {
    Layout::new(&Partitioning::Hash { columns: vec![column.into()], partitions })
}

fn range(bounds: &[&str]) -> Layout {
    let bounds = bounds.iter().map(|bound| (*bound).to_owned()).collect();
    Layout::new(&Partitioning::Range { column: "v".into(), bounds })
}

#[test]
fn every_row_lands_in_exactly_one_partition() {
    let files = Layout::new(&Partitioning::single());
    for layout in [hash("id", 7), hash("name", 7), hash("v", 7), range(&["10", "50"]), files] {
        check(&layout, &batch().schema()).unwrap();
        let pieces = layout.deal_out(&batch()).unwrap();
        let rows: usize = pieces.iter().map(|(_, piece)| piece.num_rows()).sum();
        assert_eq!(rows, ROWS as usize, "{layout:?}");
        assert!(pieces.iter().all(|(ordinal, _)| layout.has(*ordinal)));
    }
}

#[test]
fn a_range_holds_its_lower_bound_and_not_its_upper_one_and_null_is_first_and_nan_last() {
    let layout = range(&["-10", "50"]);
    let batch = batch();
    let owners = layout.owners(&batch).unwrap();
    let keys = batch.column(2).as_primitive::<arrow::datatypes::Float64Type>();
    let expected = keys.iter().map(|key| match key {
        None => 0,
        Some(key) if key.is_nan() || key >= 50.0 => 2,
        Some(key) if key >= -10.0 => 1,
        Some(_) => 0,
    });
    assert_eq!(owners, expected.collect::<Vec<u32>>());
}

#[test]
fn the_owner_of_a_value_is_where_its_row_went() {
    let layout = hash("id", 5);
    let cut = layout.middle(2, &[]).unwrap();
    let split = layout.split(&batch().schema(), 2, &cut).unwrap().to;
    let merged = split.merge(0, 1).unwrap().to;
    assert_eq!(merged.ordinals(), [7, 5, 6, 3, 4]);
    for layout in [layout, split, merged] {
        for (ordinal, piece) in layout.deal_out(&batch()).unwrap() {
            for id in piece.column(0).as_primitive::<Int64Type>() {
                let value = ScalarValue::Int32(id.map(|id| i32::try_from(id).unwrap()));
                assert_eq!(layout.owner_of(&DataType::Int64, &value), Some(ordinal));
            }
        }
    }
}

#[test]
fn the_hash_never_changes() {
    let layout = hash("id", 1_000);
    let owners: Vec<_> = [0i64, 1, -1, i64::MAX]
        .map(|id| layout.owner_of(&DataType::Int64, &ScalarValue::Int64(Some(id))))
        .into();
    assert_eq!(owners, STORED_OWNERS.map(Some).to_vec());
}

const STORED_OWNERS: [u32; 4] = [379, 409, 756, 413];

#[test]
fn hashes_are_divided_as_multiply_and_shift_divides_them() {
    for partitions in [1, 2, 3, 5, 7, 16, 1_000, PARTITIONS_MAX] {
        let cuts = even_cuts(partitions);
        let probes = cuts.iter().flat_map(|cut| [cut - 1, *cut, cut + 1]);
        for hash in probes.chain([0, 1, u64::MAX - 1, u64::MAX]) {
            let shifted = (u128::from(hash) * u128::from(partitions)) >> 64;
            let position = cuts.partition_point(|cut| *cut <= hash);
            assert_eq!(position as u128, shifted, "{hash} of {partitions}");
        }
    }
}

#[test]
fn a_layout_that_was_never_changed_is_written_as_older_versions_wrote_it() {
    let text = r#"{"strategy":"hash","columns":["id"],"partitions":3}"#;
    let layout = Layout::from_text(text).unwrap();
    assert_eq!((layout.ordinals(), layout.to_text().unwrap().as_str()), (&[0, 1, 2][..], text));
    let text = r#"{"strategy":"range","column":"v","bounds":["10","50"]}"#;
    let layout = Layout::from_text(text).unwrap();
    assert_eq!(layout.to_text().unwrap(), text);
    let split = layout.split(&batch().schema(), 1, &Cut::Value("20".into())).unwrap().to;
    let text = split.to_text().unwrap();
    assert!(serde_json::from_str::<Partitioning>(&text).is_err(), "older versions refuse {text}");
}

#[test]
fn a_cut_outside_a_gone_partition_and_strangers_are_named() {
    let schema = batch().schema();
    let layout = range(&["10", "50"]);
    let text = |error: PartitioningError| format!("{}: {error}", error.code());
    let cut = |at: &str| Cut::Value(at.to_owned());
    for at in ["10", "50", "9", "x"] {
        let error = text(layout.split(&schema, 1, &cut(at)).unwrap_err());
        let expected = "is no key inside of it (v >= 10 and v < 50)";
        assert!(error.starts_with("FS-PARTITION-9") && error.contains(expected), "{error}");
    }
    let error = text(layout.merge(0, 2).unwrap_err());
    assert!(error.starts_with("FS-PARTITION-8") && error.contains("[0, 1, 2]"), "{error}");
    let merged = layout.merge(1, 0).unwrap();
    assert_eq!((merged.gone, merged.new), (vec![0, 1], vec![3]));
    let error = text(merged.to.split(&schema, 0, &cut("5")).unwrap_err());
    assert!(error.starts_with("FS-PARTITION-7") && error.contains("[3, 2]"), "{error}");
    let files = Layout::new(&Partitioning::Files { partitions: 3 });
    assert_eq!(files.merge(0, 1).unwrap_err().code(), "FS-PARTITION-10");
    let error = text(hash("id", 2).cut_at(0, "5").unwrap_err());
    assert!(error.contains("leave the key value out"), "{error}");
    let same = batch().slice(0, 1);
    let error = text(hash("id", 1).middle(0, &[same.clone(), same]).unwrap_err());
    assert!(error.contains("the same key"), "{error}");
}

#[test]
fn what_contradicts_itself_is_not_read() {
    for text in [
        r#"{"strategy":"hash","columns":["id"],"parts":[],"next":3}"#,
        r#"{"strategy":"hash","columns":["id"],"parts":[{"ordinal":0},{"ordinal":0,"from":5}],"next":3}"#,
        r#"{"strategy":"hash","columns":["id"],"parts":[{"ordinal":0},{"ordinal":1,"from":0}],"next":3}"#,
        r#"{"strategy":"hash","columns":["id"],"parts":[{"ordinal":0},{"ordinal":3,"from":5}],"next":3}"#,
        r#"{"strategy":"hash","columns":["id"],"parts":[{"ordinal":0},{"ordinal":1}],"next":3}"#,
        r#"{"strategy":"hash","columns":["id"],"parts":[{"ordinal":0,"from":1}],"next":3}"#,
        r#"{"strategy":"hash"}"#,
    ] {
        assert_eq!(Layout::from_text(text).unwrap_err().code(), "FS-PARTITION-11", "{text}");
    }
}

/// What is done to a layout, with a number that picks where.
#[derive(Clone, Debug)]
enum Act {
    Split(usize),
    Merge(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => any::<usize>().prop_map(Act::Split),
        2 => any::<usize>().prop_map(Act::Merge),
    ];
    prop::collection::vec(act, 1..25)
}

#[test]
fn people_move_the_number_of_partitions_that_they_want_and_the_loop_does_not() {
    let layout = Layout::new(&Partitioning::Hash { columns: vec!["id".into()], partitions: 2 });
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let split = layout.split(&schema, 0, &Cut::Hash(7)).unwrap().to;
    assert_eq!((split.partitions(), split.made()), (3, 2));
    let split = split.asked_for(&layout);
    assert_eq!(split.made(), 3);
    assert_eq!(Layout::from_text(&split.to_text().unwrap()).unwrap().made(), 3);
    let merged = split.merge(2, 3).unwrap().to.asked_for(&split);
    assert_eq!(merged.made(), 2);
    let one = merged.merge(4, 1).unwrap().to.asked_for(&merged);
    assert_eq!(one.made(), 1);
    // Written before this was noted.
    let old = r#"{"strategy":"hash","columns":["id"],"parts":[{"ordinal":0},{"ordinal":1,"from":5}],"next":3}"#;
    assert_eq!(Layout::from_text(old).unwrap().made(), 2);
}

#[test]
fn two_layouts_share_the_ranges_between_cuts_that_both_have() {
    let hashed = |columns: &[&str], partitions| {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Layout::new(&Partitioning::Hash { columns, partitions })
    };
    let range = |column: &str, bounds: &[&str]| {
        let bounds = bounds.iter().map(|bound| (*bound).to_owned()).collect();
        Layout::new(&Partitioning::Range { column: column.to_owned(), bounds })
    };
    let shared = |one: &Layout, other: &Layout| {
        let ranges = one.ranges_shared_with(other)?;
        Some(ranges.into_iter().map(|it| (it.left, it.right)).collect::<Vec<_>>())
    };
    let (two, four) = (hashed(&["id"], 2), hashed(&["order_id"], 4));
    assert_eq!(shared(&two, &four).unwrap(), [(vec![0], vec![0, 1]), (vec![1], vec![2, 3])]);
    assert_eq!(shared(&hashed(&["id"], 3), &four).unwrap(), [(vec![0, 1, 2], vec![0, 1, 2, 3])]);
    assert_eq!(shared(&hashed(&["a", "b"], 2), &two), None);
    let tens = range("at", &["10", "20", "30"]);
    let merged = tens.merge(1, 2).unwrap().to;
    assert_eq!(
        shared(&merged, &tens).unwrap(),
        [(vec![0], vec![0]), (vec![4], vec![1, 2]), (vec![3], vec![3])]
    );
    assert_eq!(shared(&tens, &two), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn splits_and_merges_move_only_rows_of_their_partitions_and_use_no_ordinal_twice(
        which in 0..4usize,
        acts in acts(),
    ) {
        let batch = batch();
        let first = [hash("id", 4), hash("v", 2), range(&["-10", "50"]), range(&[])];
        let mut layout = first[which].clone();
        let mut used: Vec<u32> = layout.ordinals().to_vec();
        for act in acts {
            let has = layout.ordinals().to_vec();
            let before = layout.owners(&batch).unwrap();
            let done = match act {
                Act::Split(pick) => {
                    let ordinal = has[pick % has.len()];
                    let own = layout.deal_out(&batch).unwrap();
                    let own: Vec<RecordBatch> = own
                        .into_iter()
                        .filter(|(of, _)| *of == ordinal)
                        .map(|(_, rows)| rows)
                        .collect();
                    let Ok(cut) = layout.middle(ordinal, &own) else { continue };
                    layout.split(&batch.schema(), ordinal, &cut).unwrap()
                }
                Act::Merge(_) if has.len() < 2 => continue,
                Act::Merge(pick) => {
                    let at = pick % (has.len() - 1);
                    layout.merge(has[at], has[at + 1]).unwrap()
                }
            };
            prop_assert!(done.new.iter().all(|new| !used.contains(new)), "{:?}", done);
            used.extend(&done.new);
            let after = done.to.owners(&batch).unwrap();
            for (before, after) in before.iter().zip(&after) {
                if done.gone.contains(before) {
                    prop_assert!(done.new.contains(after));
                } else {
                    prop_assert_eq!(before, after);
                }
            }
            if done.new.len() == 2 && before.iter().any(|owner| done.gone.contains(owner)) {
                let rows = |new: u32| after.iter().filter(|owner| **owner == new).count();
                prop_assert!(done.new.iter().all(|new| rows(*new) > 0), "{:?}", done);
            }
            // Rows of equal keys are in one of the ranges that the layout shares with the first one.
            let shared = first[which].ranges_shared_with(&done.to).unwrap();
            for (one, other) in first[which].owners(&batch).unwrap().iter().zip(&after) {
                let both = |it: &SharedRange| it.left.contains(one) && it.right.contains(other);
                prop_assert!(shared.iter().any(both), "{} and {}: {:?}", one, other, shared);
            }
            prop_assert_eq!(&Layout::from_text(&done.to.to_text().unwrap()).unwrap(), &done.to);
            check(&done.to, &batch.schema()).unwrap();
            layout = done.to;
        }
    }
}

/// Rows of which the first 1,024 are called much more than the others, by the value of `id`.
fn loaded() -> (RecordBatch, RowLoad) {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let ids = Int64Array::from_iter_values(0..3_072);
    let rows = RecordBatch::try_new(schema, vec![Arc::new(ids)]).unwrap();
    (rows, RowLoad { block_rows: 1_024, by_row: vec![98.0, 1.0, 1.0] })
}

fn best(even: Even, ranges: &[(i64, i64)]) -> (String, String) {
    let (rows, load) = loaded();
    let edge = |key: i64| Some(Edge { key: key.to_string(), is_after: false });
    let range = |(from, to): &(i64, i64)| (KeyRange { from: edge(*from), to: edge(*to) }, 1.0);
    let ranges = ranges.iter().map(range).collect();
    let used = KeyUse { even, ranges, ..KeyUse::default() };
    let layout = Layout::new(&Partitioning::Range { column: "id".into(), bounds: vec![] });
    let (cut, why) = layout.best_cut(0, &[(&rows, Some(&load))], &used).unwrap();
    (cut.to_string(), why)
}

#[test]
fn a_cut_halves_the_load_or_the_rows_and_keeps_off_the_ranges_that_queries_ask_for() {
    assert_eq!(best(Even::Load, &[]).0, "\"522\"");
    assert_eq!(best(Even::Rows, &[]).0, "\"1536\"");
    let (cut, why) = best(Even::Load, &[(500, 600), (505, 700), (0, 530)]);
    assert_eq!(cut, "\"500\"", "{why}");
    assert!(why.ends_with("; 33 % of the ranges that queries ask for span it, 100 % the middle"));
    assert_eq!(best(Even::Rows, &[(1_500, 1_600)]).0, "\"1500\"");
    // What is asked for elsewhere, or of another type, is no reason.
    let (rows, _) = loaded();
    let edge = |key: &str| Some(Edge { key: key.to_owned(), is_after: true });
    let odd = [(edge("x"), edge("y")), (edge("9000"), None), (None, edge("-1"))];
    let ranges = odd.map(|(from, to)| (KeyRange { from, to }, 9.0)).to_vec();
    let used = KeyUse { ranges, ..KeyUse::default() };
    let layout = Layout::new(&Partitioning::Range { column: "id".into(), bounds: vec![] });
    let (cut, why) = layout.best_cut(0, &[(&rows, None)], &used).unwrap();
    assert_eq!(
        (cut.to_string(), why.as_str()),
        ("\"1536\"".into(), "50 % of the rows are left of it")
    );
}

#[test]
fn hashes_are_cut_by_the_load_of_their_keys_and_one_hot_key_is_not_divided() {
    let (rows, load) = loaded();
    let used = KeyUse { even: Even::Load, ..KeyUse::default() };
    let one = hash("id", 1);
    let (Cut::Hash(cut), why) = one.best_cut(0, &[(&rows, Some(&load))], &used).unwrap() else {
        panic!("hashes are cut between hashes")
    };
    let split = one.split(&rows.schema(), 0, &Cut::Hash(cut)).unwrap().to;
    let left = split.owners(&rows).unwrap().into_iter().zip(0..);
    let left: f64 =
        left.filter(|(owner, _)| *owner == 1).map(|(_, row)| load.by_row[row / 1_024]).sum();
    assert!((left / (1_024.0 * 100.0) - 0.5).abs() < 0.01, "{left}: {why}");
    let hot =
        RowLoad { block_rows: 1, by_row: (0..3_072).map(|row| f64::from(row == 7)).collect() };
    for layout in [one, Layout::new(&Partitioning::Range { column: "id".into(), bounds: vec![] })] {
        let error = layout.best_cut(0, &[(&rows, Some(&hot))], &used).unwrap_err();
        assert!(error.to_string().contains("most of it is on one key"), "{error}");
    }
}

#[test]
fn of_many_keys_those_near_the_middle_and_at_the_ends_of_ranges_are_weighed() {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let ids = Int64Array::from_iter_values(0..20_000);
    let rows = RecordBatch::try_new(schema, vec![Arc::new(ids)]).unwrap();
    let edge = |key: &str| Some(Edge { key: key.to_owned(), is_after: false });
    let ranges = vec![(KeyRange { from: edge("8007"), to: edge("11993") }, 1.0)];
    let used = KeyUse { ranges, ..KeyUse::default() };
    let layout = Layout::new(&Partitioning::Range { column: "id".into(), bounds: vec![] });
    let (cut, _) = layout.best_cut(0, &[(&rows, None)], &used).unwrap();
    assert!(["\"8007\"", "\"11993\""].contains(&cut.to_string().as_str()), "{cut}");
}

#[test]
fn tables_that_are_cut_at_the_same_places_have_the_same_marks() {
    assert_eq!(hash("id", 4).cut_marks(), hash("name", 4).cut_marks());
    assert_eq!(range(&["10", "50"]).cut_marks()[1], range(&["50"]).cut_marks()[0]);
    assert_ne!(range(&["10"]).cut_marks(), range(&["11"]).cut_marks());
}
