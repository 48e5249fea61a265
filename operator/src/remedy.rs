//! What to do about a failure, in the words of somebody who has only `kubectl`.

use clip_crds::{ClipImage, condition::reason};
use kube::ResourceExt;

/// One or two sentences for the condition's message, after what went wrong.
pub fn remedy(why: &str, image: &ClipImage, permanent: bool) -> String {
    let specific = specific(why, image);
    if !permanent {
        return specific;
    }
    let again = format!(
        "When the spec needs no change, ask for another try with: kubectl annotate clipimage -n {} {} clip.dev/requestedAt=\"$(date)\" --overwrite",
        image.namespace().unwrap_or_default(),
        image.name_any(),
    );
    [specific, again]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn specific(why: &str, image: &ClipImage) -> String {
    let spec = &image.spec;
    let secrets = spec
        .pull_secrets
        .iter()
        .map(|secret| secret.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    match why {
        "ImageNotFound" | "BlobNotFound" if secrets.is_empty() => {
            "Check spec.image; if the image is private, name a Secret of type kubernetes.io/dockerconfigjson in spec.pullSecrets.".into()
        }
        "ImageNotFound" | "BlobNotFound" => "Check spec.image.".into(),
        "Unauthorized" | "Forbidden" if secrets.is_empty() => {
            "Name a Secret of type kubernetes.io/dockerconfigjson in spec.pullSecrets (and in spec.publish.registry.pushSecret to publish).".into()
        }
        "Unauthorized" | "Forbidden" => {
            format!("Check the credentials in Secret {secrets} and that they hold for the registry in spec.image.")
        }
        "RegistryUnreachable" => {
            "Check that pods of this namespace reach the registry (DNS, network policy); one without TLS has to be named in the Helm value registries.".into()
        }
        "RateLimited" => "Name credentials in spec.pullSecrets to raise the registry's limit.".into(),
        "PlatformNotFound" => "Set spec.platforms to a platform that the image has.".into(),
        "InvalidReference" => "Correct spec.image (or spec.publish.registry.repository).".into(),
        "UnsupportedMediaType" | "UnsupportedLayer" | "InvalidImage" => {
            "This image cannot be indexed as it is; rebuild it with ordinary tar layers (gzip, zstd or none).".into()
        }
        "DigestMismatch" => "The registry delivers other bytes than the image's digests promise: push the image again.".into(),
        reason::OUT_OF_MEMORY => "Raise spec.index.job.resources.limits.memory.".into(),
        reason::DEADLINE_EXCEEDED => "Raise spec.index.job.activeDeadlineSeconds.".into(),
        reason::PUBLISH_FAILED => "Check spec.publish.registry and its pushSecret.".into(),
        "UploadRefused" | "UploadFailed" => "Check the log of the Clip operator.".into(),
        _ => String::new(),
    }
}
