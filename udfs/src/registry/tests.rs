//! What the registry promises: names, versions, and the same versions on every node.

use arrow::datatypes::DataType;
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility, create_udf,
};

use super::*;
use crate::card::CostClass;

fn card(name: &str, version: &str) -> Card {
    Card::immutable(name, version, CostClass::Free, "A test.", "SELECT 1")
}

fn identity(name: &str) -> ScalarUDF {
    let answer = Arc::new(|args: &[ColumnarValue]| Ok(args[0].clone()));
    create_udf(name, vec![DataType::Int64], DataType::Int64, Volatility::Immutable, answer)
}

#[test]
fn redefining_a_function_always_changes_its_version() {
    let functions = Functions::new();
    let first = functions.register(card("f", "1"), identity("f")).unwrap();
    let before = functions.get("f").unwrap();
    registered(&before).unwrap().quarantine();
    let second = functions.register(card("f", "1"), identity("f")).unwrap();
    let third = functions.register(card("f", "1"), identity("f")).unwrap();
    assert!(first != second && second != third && first != third);
    // Who holds the old definition keeps it; the new one starts with a clean slate.
    assert_eq!(registered(&before).unwrap().version(), first);
    assert!(!registered(&functions.get("f").unwrap()).unwrap().is_quarantined());
}

#[test]
fn the_same_registrations_give_the_same_versions_on_every_node() {
    let versions = |functions: Functions| {
        let listed = functions.list().into_iter();
        listed.map(|one| (one.card.name, one.version)).collect::<Vec<_>>()
    };
    assert_eq!(versions(Functions::library()), versions(Functions::library()));
}

#[test]
fn a_function_asked_for_by_an_old_version_is_refused_with_both() {
    let functions = Functions::new();
    let old = functions.register(card("f", "1"), identity("f")).unwrap();
    assert!(functions.get_versioned("f", old).is_ok());
    let new = functions.register(card("f", "2"), identity("f")).unwrap();
    let error = functions.get_versioned("f", old).unwrap_err();
    assert_eq!(error.code(), "FS-FN-8");
    assert!(error.is_retryable());
    assert_eq!(
        error.to_string(),
        format!("function f has version {new} here; version {old} was asked for")
    );
    let error = functions.get_versioned("g", old).unwrap_err();
    assert_eq!(error.code(), "FS-FN-7");
    assert!(!error.is_retryable());
}

#[test]
fn the_nearest_name_is_suggested_and_no_wild_guess() {
    let functions = Functions::library();
    let nearest = |name| functions.nearest(name);
    assert_eq!(nearest("sondex").as_deref(), Some("soundex"));
    assert_eq!(nearest("BEST_MACH").as_deref(), Some("best_match"));
    assert_eq!(nearest("levenstein_similarity").as_deref(), Some("levenshtein_similarity"));
    assert_eq!(nearest("wieghted_avg").as_deref(), Some("weighted_avg"));
    assert_eq!(nearest("pi"), None);
    assert_eq!(nearest(""), None);
    let text = functions.unknown("sondex").to_string();
    assert_eq!(text, "unknown function sondex; did you mean soundex?");
}

#[test]
fn a_card_that_contradicts_its_function_is_refused() {
    let functions = Functions::new();
    let error = functions.register(card("g", "1"), identity("f")).unwrap_err();
    assert_eq!(error.code(), "FS-FN-9");
    let text =
        "function g cannot be registered: the card's name is g; it must be f, as the function's";
    assert_eq!(error.to_string(), text);
    let stable = card("f", "1").with_volatility(Volatility::Stable);
    let error = functions.register(stable, identity("f")).unwrap_err().to_string();
    assert!(error.contains("the card's volatility is stable; it must be immutable"), "{error}");
    assert!(functions.list().is_empty());
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Later(Signature);

impl ScalarUDFImpl for Later {
    fn name(&self) -> &str {
        "later"
    }
    fn signature(&self) -> &Signature {
        &self.0
    }
    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Int64)
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        Ok(args.args[0].clone())
    }
}

#[async_trait::async_trait]
impl AsyncScalarUDFImpl for Later {
    async fn invoke_async_with_args(
        &self,
        args: ScalarFunctionArgs,
    ) -> DataFusionResult<ColumnarValue> {
        Ok(args.args[0].clone())
    }
}

#[test]
fn an_asynchronous_function_is_shown_where_it_can_be_registered() {
    let later = Later(Signature::any(1, Volatility::Immutable));
    let udf = AsyncScalarUDF::new(Arc::new(later)).into_scalar_udf();
    let error = Functions::new().register(card("later", "1"), udf).unwrap_err().to_string();
    assert!(error.contains("the function is asynchronous"), "{error}");
    assert!(error.contains("register_async_function"), "{error}");
}

#[test]
fn an_asynchronous_function_is_registered_with_a_card_that_fits_and_options_within_bounds() {
    let functions = Functions::new();
    let register = |card: Card, options: AsyncOptions| {
        let later = Later(Signature::any(1, Volatility::Immutable));
        functions.register_async(card, AsyncScalarUDF::new(Arc::new(later)), options)
    };
    let options = AsyncOptions::default();
    let refused = |card, options| register(card, options).unwrap_err().to_string();
    assert!(refused(card("sooner", "1"), options).contains("the card's name is sooner"));
    let stable = card("later", "1").with_volatility(Volatility::Stable);
    assert!(refused(stable, options).contains("the card's volatility is stable"));
    let none = refused(card("later", "1"), options.with_concurrency(0));
    assert!(none.contains("is 0; it must be 1 to 1024"), "{none}");
    assert!(!functions.has_asynchronous() && functions.list().is_empty());
    let first = register(card("later", "1"), options).unwrap();
    assert!(functions.has_asynchronous());
    assert_ne!(register(card("later", "1"), options).unwrap(), first);
    let udf = functions.get("later").unwrap();
    let later = registered(&udf).unwrap();
    assert!(later.is_asynchronous() && later.is_storable());
    // What is registered already can be registered again, as any other function.
    functions.register(card("later", "2"), udf.as_ref().clone()).unwrap();
    assert!(registered(&functions.get("later").unwrap()).unwrap().is_asynchronous());
}

#[test]
fn a_registered_function_is_not_wrapped_twice() {
    let functions = Functions::new();
    functions.register(card("f", "1"), identity("f")).unwrap();
    let once = functions.get("f").unwrap().as_ref().clone();
    functions.register(card("f", "2"), once).unwrap();
    let twice = functions.get("f").unwrap();
    assert!(registered(registered(&twice).unwrap().inner()).is_none());
}

#[test]
fn a_function_is_found_by_its_alias() {
    let functions = Functions::new();
    functions.register(card("f", "1"), identity("f").with_aliases(["also_f"])).unwrap();
    assert_eq!(functions.get("also_f"), functions.get("f"));
    assert!(functions.get("other").is_none());
}

#[test]
fn a_scalar_function_and_an_aggregate_of_one_name_replace_each_other() {
    let functions = Functions::library();
    let name = "weighted_avg";
    assert!(functions.aggregate(name).is_some());
    functions.register(card(name, "1"), identity(name)).unwrap();
    assert!(functions.aggregate(name).is_none() && functions.get(name).is_some());
    let (card, udaf) = crate::aggregates().remove(0);
    functions.register_aggregate(card, udaf).unwrap();
    assert!(functions.aggregate(name).is_some() && functions.get(name).is_none());
    let kinds: Vec<Kind> =
        functions.list().iter().filter(|one| one.card.name == name).map(|one| one.kind).collect();
    assert_eq!(kinds, [Kind::Aggregate]);
}

#[test]
fn every_function_of_the_library_has_a_whole_card_and_documented_arguments() {
    let functions = Functions::library();
    let listed = functions.list();
    assert_eq!(listed.len(), 18);
    for one in &listed {
        let Card { name, version, summary, example, .. } = &one.card;
        assert!(!version.is_empty() && summary.ends_with('.'), "{name}");
        assert!(example.starts_with("SELECT ") && example.contains(&format!("{name}(")), "{name}");
        if one.kind == Kind::Scalar {
            assert!(one.is_storable, "{name}");
            let udf = functions.get(name).unwrap();
            assert!(udf.documentation().unwrap().arguments.is_some(), "{name}");
            assert!(udf.signature().parameter_names.is_some(), "{name}");
        }
    }
}

#[test]
fn the_front_page_lists_every_function_with_its_cost() {
    let page = include_str!("../lib.rs");
    for one in Functions::library().list() {
        let mut lines = page.lines().filter(|line| line.starts_with("//! | `"));
        let line = lines.find(|line| line.contains(&format!("`{}(", one.card.name)));
        let cost = format!("| {} |", one.card.cost);
        assert!(line.is_some_and(|line| line.ends_with(&cost)), "{} {cost}", one.card.name);
    }
}

#[test]
fn many_threads_register_and_look_up_at_once() {
    let functions = Functions::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    functions.register(card("f", "1"), identity("f")).unwrap();
                    assert!(functions.get("f").is_some());
                }
            });
        }
    });
    let expected = FunctionVersion::new("f", "1", 200);
    assert_eq!(registered(&functions.get("f").unwrap()).map(Registered::version), Some(expected));
}
