//! The settings as users meet them.

use super::*;

fn load(text: &str, overrides: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreshard.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<_> =
        overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Loaded::load(Some(&path), &overrides)
}

fn error(text: &str, overrides: &[(&str, &str)]) -> ConfigError {
    load(text, overrides).unwrap_err()
}

#[test]
fn the_defaults_obey_their_own_bounds_and_explain_themselves() {
    let config = Config::default();
    assert_eq!(config.clone().checked_whole(), Ok(config.clone()));
    assert_eq!(config.serve().http_address(), Some("127.0.0.1:8080"));
    assert_eq!(config.serve().flight_address(), Some("127.0.0.1:50051"));
    assert_eq!(config.serve().control_address(), None);
    let entries = config.entries();
    assert!(entries.iter().all(|entry| entry.doc.ends_with('.') && !entry.doc.contains('\n')));
    assert!(entries.iter().any(|entry| entry.key == "loop.tick-ms"));
}

#[test]
fn flags_win_over_the_file_and_the_source_is_known() {
    let text = "nodes = 3\n[serve]\nhttp-address = 'off'\n[loop]\nmode = 'reactive'\n[loop.lstm]\nenabled = false";
    let loaded = load(text, &[("nodes", "5"), ("telemetry.service-name", "12 men")]).unwrap();
    assert_eq!(loaded.config.nodes(), 5);
    assert_eq!(loaded.config.serve().http_address(), None);
    assert_eq!(loaded.config.telemetry().service_name(), "12 men");
    assert!(!loaded.config.loop_config().lstm().enabled());
    assert_eq!(loaded.sources["nodes"], "flag");
    assert!(loaded.sources["serve.http-address"].ends_with("foreshard.toml"));
    assert!(!loaded.sources.contains_key("partitions"));
}

#[test]
fn an_unknown_key_names_the_nearest_one() {
    let error = error("[serve]\nhtpp-address = 'off'", &[]);
    assert_eq!(error.code(), "FS-CONFIG-3");
    let text = error.to_string();
    assert!(text.starts_with("unknown setting serve.htpp-address in "), "{text}");
    assert!(text.ends_with("foreshard.toml; did you mean serve.http-address?"), "{text}");
}

#[test]
fn a_key_in_the_wrong_section_is_found_by_its_last_part() {
    let error = error("", &[("http-adress", "off")]);
    assert_eq!(
        error.to_string(),
        "unknown setting http-adress in flag; did you mean serve.http-address?"
    );
}

#[test]
fn an_error_names_the_key_the_value_and_the_bound() {
    assert_eq!(error("nodes = 0", &[]).to_string(), "nodes is 0; it must be 1 to 1024");
    let format = error("", &[("telemetry.log-format", "xml")]);
    assert_eq!(format.to_string(), "telemetry.log-format is xml; it must be human or json");
    let address = error("", &[("serve.http-address", "here")]);
    assert_eq!(
        address.to_string(),
        "serve.http-address in flag: \"here\" is not an address; it must be host:port or off"
    );
    let tick = error("", &[("loop.tick-ms", "0")]);
    assert!(tick.to_string().contains("tick-ms is 0; it must be 1 to 3600000"), "{tick}");
}

#[test]
fn a_value_of_the_wrong_type_names_key_and_place() {
    let error = error("", &[("nodes", "many")]);
    assert_eq!(error.code(), "FS-CONFIG-4");
    let text = error.to_string();
    assert!(text.starts_with("nodes in flag: invalid type: found string \"many\""), "{text}");
}

#[test]
fn a_file_that_is_no_toml_or_not_there_is_named_with_its_line() {
    let broken = error("nodes = \n", &[]).to_string();
    assert!(broken.contains("line 1"), "{broken}");
    let missing = Loaded::load(Some(Path::new("/nowhere/at/all.toml")), &[]).unwrap_err();
    assert_eq!(missing.code(), "FS-CONFIG-5");
}

#[test]
fn one_setting_can_be_set_in_code_and_by_key() {
    let config = Config::default().with_nodes(3).unwrap().set("limits.query-seconds", "7").unwrap();
    assert_eq!((config.nodes(), config.limits().query_seconds()), (3, 7));
    assert!(Config::default().with_nodes(0).is_err());
    assert_eq!(config.set("limits.query-second", "7").unwrap_err().code(), "FS-CONFIG-3");
}
