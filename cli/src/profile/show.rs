//! `clip profile show`.

use crate::{failure::Failure, profile, units};
use clap::Args;
use clip_archive::{Archive, Digest, StartProfile};
use serde_json::json;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Show what a profile names, layer by layer; with an archive, how many bytes of its image that is.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The profile.
    profile: PathBuf,

    /// An archive of the image.
    file: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a profile names of one layer.
#[derive(Debug)]
struct Share {
    section: Digest,
    spans: usize,
    /// Of the archive, if one was given and has the layer.
    layer: Option<Layer>,
}

#[derive(Debug)]
struct Layer {
    index: usize,
    /// Compressed bytes of the spans that the profile names.
    named: u64,
    /// Compressed bytes of the layer.
    size: u64,
}

/// Runs the command.
pub fn run(args: &ShowArgs) -> Result<(), Failure> {
    let profile = profile::read(&args.profile)?;
    let mut shares = shares(&profile);
    if let Some(file) = &args.file {
        look_up(&mut shares, &profile, file)?;
    }
    match args.json {
        true => println!("{}", to_json(&shares)),
        false => print(&shares, args.file.is_some()),
    }
    Ok(())
}

/// In the order of the first touch.
fn shares(profile: &StartProfile) -> Vec<Share> {
    let mut position: HashMap<Digest, usize> = HashMap::new();
    let mut shares: Vec<Share> = Vec::new();
    for touch in profile.touches() {
        let at = *position.entry(touch.section).or_insert(shares.len());
        if at == shares.len() {
            shares.push(Share {
                section: touch.section,
                spans: 0,
                layer: None,
            });
        }
        shares[at].spans += 1;
    }
    shares
}

fn look_up(shares: &mut [Share], profile: &StartProfile, file: &Path) -> Result<(), Failure> {
    let shown = file.display();
    let bytes = std::fs::read(file)
        .map_err(|error| Failure::local(format!("cannot read {shown}: {error}")))?;
    let damaged = |error| Failure::local(format!("{shown}: {error}"));
    let archive = Archive::open(bytes).map_err(damaged)?;
    for (index, layer) in archive.head().layers.iter().enumerate() {
        let section = layer.section_digest();
        let Some(share) = shares.iter_mut().find(|share| share.section == section) else {
            continue;
        };
        let table = archive.seek_table(index).map_err(damaged)?;
        let touches = profile.touches().iter();
        let named = touches
            .filter(|touch| touch.section == section)
            .filter_map(|touch| Some(table.spans.get(touch.span as usize)?.blob_len));
        share.layer = Some(Layer {
            index,
            named: named.sum(),
            size: layer.size,
        });
    }
    Ok(())
}

fn to_json(shares: &[Share]) -> serde_json::Value {
    let layers = shares.iter().map(|share| {
        json!({
            "section": share.section.to_string(),
            "spans": share.spans,
            "layer": share.layer.as_ref().map(|layer| layer.index),
            "bytes": share.layer.as_ref().map(|layer| layer.named),
            "layerBytes": share.layer.as_ref().map(|layer| layer.size),
        })
    });
    json!({ "sections": layers.collect::<Vec<_>>() })
}

fn print(shares: &[Share], with_archive: bool) {
    for share in shares {
        let section = share.section.short();
        let spans = units::count(share.spans as u64, "span");
        match &share.layer {
            Some(layer) => println!(
                "layer {:<3} {section}  {spans:>12}  {} of {}",
                layer.index,
                units::bytes(layer.named),
                units::bytes(layer.size)
            ),
            None if with_archive => println!("not of this image {section}  {spans:>12}"),
            None => println!("{section}  {spans:>12}"),
        }
    }
    let spans: usize = shares.iter().map(|share| share.spans).sum();
    let layers = shares.iter().filter_map(|share| share.layer.as_ref());
    let named: u64 = layers.map(|layer| layer.named).sum();
    match with_archive {
        true => println!(
            "{}, {} to fetch",
            units::count(spans as u64, "span"),
            units::bytes(named)
        ),
        false => println!("{}", units::count(spans as u64, "span")),
    }
}
