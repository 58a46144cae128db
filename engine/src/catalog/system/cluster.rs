//! System tables about nodes, tables, replicas, functions, outputs and settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use foreshard_actors::ports::Cluster;
use foreshard_actors::segment::Location;
use foreshard_actors::table::TableStore;
use foreshard_policy::budgets::{self, Shares};
use foreshard_policy::ids::PartitionId;

use crate::catalog::system::sheet::Sheet;
use crate::cluster::{HeldOutput, HeldPartial};
use crate::engine::Inner;

/// `system.nodes`.
pub(super) fn nodes(engine: &Inner) -> Sheet {
    let view = engine.members.view();
    let placement = engine.members.placement();
    let rows = || view.nodes.iter();
    let replicas = |node| placement.holders.values().filter(|nodes| nodes.contains(&node)).count();
    let url = |node| {
        let position = placement.position(node);
        position.map(|position| placement.nodes[position].url.to_string())
    };
    Sheet::default()
        .text("node", rows().map(|(node, _)| node))
        .text_or_null("url", rows().map(|(node, _)| url(*node)))
        .flag("in_this_process", rows().map(|(node, _)| placement.is_local(*node)))
        .flag("draining", rows().map(|(_, view)| view.draining))
        .count("cpu_permits", rows().map(|(_, view)| u64::from(view.cpu_permits)))
        .count("memory_bytes", rows().map(|(_, view)| view.memory_bytes))
        .count("memory_bytes_max", rows().map(|(_, view)| view.memory_bytes_max))
        .count("replicas", rows().map(|(node, _)| replicas(*node) as u64))
}

/// `system.partitions`.
pub(super) fn partitions(engine: &Inner) -> Sheet {
    let view = engine.members.view();
    let stores: BTreeMap<Arc<str>, Arc<dyn TableStore>> = engine
        .catalog
        .stores()
        .into_iter()
        .map(|store| (Arc::clone(&store.table().name), store))
        .collect();
    let rows = || view.partitions.iter();
    let store = |id: &PartitionId| stores.get(&id.table);
    let key = |id: &PartitionId| {
        store(id).map(|store| store.table().partitioning.key_columns().join(", "))
    };
    let range = |id: &PartitionId| store(id)?.snapshot().layout.range(id.ordinal);
    let kind = |id: &PartitionId| store(id).map(|store| store.table().kind.as_str().to_owned());
    Sheet::default()
        .text("table_name", rows().map(|(id, _)| &id.table))
        .count("partition", rows().map(|(id, _)| u64::from(id.ordinal)))
        .text_or_null("kind", rows().map(|(id, _)| kind(id)))
        .text_or_null("partition_key", rows().map(|(id, _)| key(id)))
        .text_or_null("range", rows().map(|(id, _)| range(id)))
        .count("rows", rows().map(|(_, partition)| partition.rows))
        .count("bytes", rows().map(|(_, partition)| partition.bytes))
        .count("replicas", rows().map(|(_, partition)| partition.holders.len() as u64))
}

/// `system.segments`.
pub(super) fn segments(engine: &Inner) -> Sheet {
    let snapshots: Vec<_> = engine.catalog.stores().iter().map(|store| store.snapshot()).collect();
    let rows = || {
        snapshots
            .iter()
            .flat_map(|snapshot| snapshot.segments().map(move |segment| (snapshot, segment)))
    };
    let location = |location: &Location| match location {
        Location::Memory => "memory".to_owned(),
        Location::Parquet { path, row_group: None, .. } => path.to_string(),
        Location::Parquet { path, row_group: Some(group), .. } => {
            format!("{path} row group {group}")
        }
    };
    Sheet::default()
        .text("table_name", rows().map(|(snapshot, _)| &snapshot.table.name))
        .count("version", rows().map(|(snapshot, _)| snapshot.version))
        .count("partition", rows().map(|(_, segment)| u64::from(segment.partition)))
        .text("segment", rows().map(|(_, segment)| segment.id))
        .count("rows", rows().map(|(_, segment)| segment.rows))
        .count("bytes", rows().map(|(_, segment)| segment.bytes))
        .text("location", rows().map(|(_, segment)| location(&segment.location)))
}

/// `system.replicas`.
pub(super) fn replicas(engine: &Inner) -> Sheet {
    let placement = engine.members.placement();
    let rows = || {
        placement
            .holders
            .iter()
            .flat_map(|(partition, nodes)| nodes.iter().map(move |node| (partition, *node)))
    };
    let rows_of = |(partition, node): (&PartitionId, _)| {
        let place = engine.members.place(node).ok();
        place.and_then(|place| place.rows(partition)).unwrap_or_default()
    };
    let held = |(partition, node): (&PartitionId, _)| {
        let place = engine.members.place(node);
        place.map_or((0, 0), |place| place.segments(partition))
    };
    Sheet::default()
        .text("table_name", rows().map(|(partition, _)| &partition.table))
        .count("partition", rows().map(|(partition, _)| u64::from(partition.ordinal)))
        .text("node", rows().map(|(_, node)| node))
        .count("epoch", rows().map(|_| placement.epoch.0))
        .count("segments", rows().map(|row| held(row).0))
        .count("segments_resident", rows().map(|row| held(row).1))
        .count("row_bytes", rows().map(|row| rows_of(row).bytes))
        .count("row_bytes_in_files", rows().map(|row| rows_of(row).bytes_missing))
}

/// `system.budgets`: what each table has of what each node has, and what it may have while every table wants
/// more.
pub(super) fn budgets(engine: &Inner) -> Sheet {
    let (view, config) = (engine.members.view(), engine.the_loop.config());
    let forecast = engine.the_loop.forecast();
    let controls = engine.the_loop.controls();
    let spent = engine.the_loop.board().reshaping.load().background_spent.clone();
    let shares = Shares::new(&view, Some(&forecast), &controls, &config);
    let all = budgets::rows(&view, &shares, (&controls, &spent), &config);
    let rows = || all.iter();
    Sheet::default()
        .text("node", rows().map(|row| row.node))
        .text("table_name", rows().map(|row| &row.table))
        .number("weight", rows().map(|row| row.budget.weight()))
        .number("share_limit", rows().map(|row| row.budget.limit()))
        .number("load_ms_per_s", rows().map(|row| row.share.load_ms))
        .number("share", rows().map(|row| row.share.part.min(row.share.limit)))
        .count("output_bytes", rows().map(|row| row.output_bytes as u64))
        .count("output_bytes_share", rows().map(|row| row.output_bytes_share as u64))
        .number("background_ms", rows().map(|row| row.background_ns / 1e6))
        .number("background_ms_share", rows().map(|row| row.background_ns_share / 1e6))
}

/// `system.functions`.
pub(super) fn functions(engine: &Inner) -> Sheet {
    let functions = engine.functions.list();
    let rows = || functions.iter();
    Sheet::default()
        .text("function", rows().map(|listed| &listed.card.name))
        .text("kind", rows().map(|listed| format!("{:?}", listed.kind).to_lowercase()))
        .text("card_version", rows().map(|listed| &listed.card.version))
        .text("version", rows().map(|listed| listed.version))
        .text(
            "volatility",
            rows().map(|listed| format!("{:?}", listed.card.volatility).to_lowercase()),
        )
        .text("cost", rows().map(|listed| format!("{:?}", listed.card.cost).to_lowercase()))
        .flag("storable", rows().map(|listed| listed.is_storable))
        .flag("quarantined", rows().map(|listed| listed.is_quarantined))
        .count("calls", rows().map(|listed| listed.metered.calls))
        .count("rows", rows().map(|listed| listed.metered.rows))
        .count("ns", rows().map(|listed| listed.metered.ns))
        .count("failures", rows().map(|listed| listed.metered.failures))
        .text("summary", rows().map(|listed| &listed.card.summary))
        .text("example", rows().map(|listed| &listed.card.example))
}

/// `system.outputs`: every stored output.
pub(super) fn outputs(engine: &Inner) -> Sheet {
    let placement = engine.members.placement();
    let mut held: Vec<(PartitionId, _, HeldOutput)> = vec![];
    for (partition, nodes) in &placement.holders {
        for node in nodes {
            let Ok(place) = engine.members.place(*node) else { continue };
            let outputs = place.outputs(partition).into_iter();
            held.extend(outputs.map(|output| (partition.clone(), *node, output)));
        }
    }
    let rows = || held.iter();
    let pins = &engine.members.expressions().pins;
    let is_pinned = |(partition, _, output): &(PartitionId, _, HeldOutput)| {
        pins.has_output(&partition.table, output.expression)
    };
    let known = |output: &HeldOutput| engine.members.expressions().get(output.expression);
    Sheet::default()
        .text("table_name", rows().map(|(partition, ..)| &partition.table))
        .count("partition", rows().map(|(partition, ..)| u64::from(partition.ordinal)))
        .text("node", rows().map(|(_, node, _)| node))
        .text("segment", rows().map(|(.., output)| output.segment))
        .text("expression", rows().map(|(.., output)| output.expression))
        .text_or_null(
            "text",
            rows().map(|(.., output)| known(output).map(|known| known.text.clone())),
        )
        .count("rows", rows().map(|(.., output)| output.rows))
        .text("place", rows().map(|(.., output)| if output.is_on_disk { "disk" } else { "memory" }))
        .count("bytes", rows().map(|(.., output)| output.bytes))
        .flag("pinned", rows().map(is_pinned))
        .count("uses", rows().map(|(.., output)| output.uses))
        .count(
            "ns_per_row",
            rows().map(|(.., output)| known(output).map_or(0, |known| known.ns_per_row())),
        )
}

/// `system.partials`: every stored state of a partial aggregate.
pub(super) fn partials(engine: &Inner) -> Sheet {
    let placement = engine.members.placement();
    let mut held: Vec<(PartitionId, _, HeldPartial)> = vec![];
    for (partition, nodes) in &placement.holders {
        for node in nodes {
            let Ok(place) = engine.members.place(*node) else { continue };
            let partials = place.partials(partition).into_iter();
            held.extend(partials.map(|partial| (partition.clone(), *node, partial)));
        }
    }
    let rows = || held.iter();
    Sheet::default()
        .text("table_name", rows().map(|(partition, ..)| &partition.table))
        .count("partition", rows().map(|(partition, ..)| u64::from(partition.ordinal)))
        .text("node", rows().map(|(_, node, _)| node))
        .text("segment", rows().map(|(.., partial)| partial.segment))
        .text("fragment", rows().map(|(.., partial)| partial.fragment.id))
        .text("shape", rows().map(|(.., partial)| partial.fragment.shape))
        .text("text", rows().map(|(.., partial)| &partial.fragment.text))
        .text("pattern", rows().map(|(.., partial)| &partial.fragment.pattern))
        .count("rows", rows().map(|(.., partial)| partial.rows))
        .count("bytes", rows().map(|(.., partial)| partial.bytes))
        .count("uses", rows().map(|(.., partial)| partial.sign.uses))
        .count("ns", rows().map(|(.., partial)| partial.ns))
}

/// `system.groups`: every answer whose groups are kept.
pub(super) fn groups(engine: &Inner) -> Sheet {
    let kept = engine.groups.list();
    let rows = || kept.iter();
    Sheet::default()
        .text("table_name", rows().map(|kept| &kept.table))
        .text("text", rows().map(|kept| &kept.text))
        .count("segments", rows().map(|kept| kept.segments))
        .count("rows", rows().map(|kept| kept.rows))
        .count("bytes", rows().map(|kept| kept.bytes))
        .count("uses", rows().map(|kept| kept.uses))
}

/// `system.settings`.
pub(super) fn settings(engine: &Inner) -> Sheet {
    let entries = engine.config.entries();
    let rows = || entries.iter();
    Sheet::default()
        .text("key", rows().map(|entry| &entry.key))
        .text("value", rows().map(|entry| &entry.value))
        .text("default", rows().map(|entry| &entry.default))
        .text("unit", rows().map(|entry| entry.unit))
        .text("bound", rows().map(|entry| &entry.bound))
        .text("doc", rows().map(|entry| &entry.doc))
}
