//! Parts of budgets, who gives way, and what people may give.

use proptest::prelude::*;

use super::*;

fn claim(weight: f64, limit: f64, wants: f64) -> Claim {
    Claim { weight, limit, wants }
}

fn shares(loads: &[(&str, f64)], controls: &Controls) -> Shares {
    let loads = loads.iter().map(|(table, load)| (Arc::from(*table), *load)).collect();
    Shares::of_loads(loads, controls)
}

#[test]
fn each_gets_its_part_and_what_one_does_not_want_goes_to_the_others() {
    let all = [claim(3.0, 1.0, 1e9), claim(1.0, 1.0, 1e9)];
    assert_eq!(deal(100.0, &all), [75.0, 25.0]);
    assert_eq!(deal(100.0, &[claim(3.0, 1.0, 15.0), all[1]]), [15.0, 85.0]);
    assert_eq!(deal(100.0, &[claim(3.0, 0.4, 1e9), all[1]]), [40.0, 60.0], "it is limited");
    let limited = claim(1.0, 0.2, 1e9);
    assert_eq!(deal(100.0, &[limited, limited]), [20.0, 20.0], "and the rest is nobody's");
    assert_eq!(deal(-1.0, &all), [0.0, 0.0]);
    assert_eq!(deal(1.0, &[]), Vec::<f64>::new());
}

#[test]
fn the_expected_load_tells_the_part_and_no_table_goes_without() {
    let mut controls = Controls::default();
    let by_load = shares(&[("a", 300.0), ("b", 100.0), ("c", 0.0)], &controls);
    let part = |shares: &Shares, table: &str| (shares.of(table).part * 1e3).round();
    assert_eq!(["a", "b", "c"].map(|it| part(&by_load, it)), [667.0, 267.0, 67.0]);
    assert_eq!(part(&by_load, "new"), 67.0);
    let idle = shares(&[("a", 0.0), ("b", 0.0)], &controls);
    assert_eq!(part(&idle, "a"), 500.0);
    controls.set_budget("c", TableBudget::default().with_weight(10.0).unwrap());
    let by_people = shares(&[("a", 300.0), ("b", 100.0), ("c", 0.0)], &controls);
    assert_eq!(part(&by_people, "c"), 417.0);
    let wants = [("a".into(), 10.0), ("c".into(), 90.0)].into();
    assert_eq!(by_load.deal(100.0, &wants)["c"], 90.0, "b wants nothing");
}

#[test]
fn who_has_more_than_its_part_gives_way_to_who_has_less_and_to_nobody_else() {
    let even = shares(&[("a", 1.0), ("b", 1.0), ("c", 1.0)], &Controls::default());
    let of = |a: f64, b: f64, c: f64| -> BTreeMap<Arc<str>, f64> {
        [("a".into(), a), ("b".into(), b), ("c".into(), c)].into()
    };
    let gives = |held: BTreeMap<Arc<str>, f64>, table: &str, bytes: f64| {
        let given = gives_way(&even, 90.0, &held, (&table.into(), bytes));
        given.map(|(table, bytes)| (table.to_string(), bytes.round()))
    };
    assert_eq!(gives(of(60.0, 20.0, 10.0), "c", 5.0), Some(("a".into(), 5.0)));
    assert_eq!(gives(of(60.0, 20.0, 10.0), "a", 5.0), None, "it has more than its part");
    assert_eq!(gives(of(30.0, 30.0, 30.0), "c", 5.0), None, "nobody has more than its part");
    assert_eq!(gives(of(30.0, 40.0, 20.0), "c", 15.0), None, "it would have more than its part");
    assert_eq!(gives(of(90.0, 0.0, 0.0), "c", 40.0), Some(("a".into(), 40.0)), "b wants nothing");
    assert_eq!(gives(of(90.0, 0.0, 0.0), "c", 50.0), None, "more than half at once");
}

#[test]
fn what_people_give_a_table_has_bounds_also_in_a_file() {
    let budget = TableBudget::default();
    let error = |result: Result<TableBudget, ConfigError>| result.unwrap_err().to_string();
    assert_eq!(error(budget.with_weight(0.0)), "budget weight is 0; it must be 0.01 to 100");
    assert_eq!(error(budget.with_limit(f64::NAN)), "budget limit is NaN; it must be 0 to 1");
    let half = budget.with_limit(0.5).unwrap();
    let text = serde_json::to_string(&half).unwrap();
    assert_eq!(serde_json::from_str::<TableBudget>(&text).unwrap(), half);
    assert!(serde_json::from_str::<TableBudget>(r#"{"weight":0}"#).is_err());
}

proptest! {
    #[test]
    fn nothing_is_left_while_somebody_may_have_more_and_nobody_gets_less_than_its_part(
        total in 0.0..1e6,
        claims in prop::collection::vec((0.01..100.0, 0.0..1.0, 0.0..1e6), 1..12),
    ) {
        let claims: Vec<Claim> =
            claims.into_iter().map(|(weight, limit, wants)| claim(weight, limit, wants)).collect();
        let dealt = deal(total, &claims);
        let weights: f64 = claims.iter().map(|claim| claim.weight).sum();
        let slack = 1e-6 * (total + 1.0);
        let most = |claim: &Claim| claim.wants.min(claim.limit * total);
        let sum: f64 = dealt.iter().sum();
        prop_assert!(sum <= total + slack);
        let all_have_all =
            claims.iter().zip(&dealt).all(|(claim, got)| *got >= most(claim) - slack);
        prop_assert!(sum >= total - slack || all_have_all);
        for (claim, got) in claims.iter().zip(&dealt) {
            prop_assert!(*got <= most(claim) + slack);
            let part = total * claim.weight / weights;
            prop_assert!(*got >= most(claim).min(part) - slack, "less than its part");
        }
    }
}
