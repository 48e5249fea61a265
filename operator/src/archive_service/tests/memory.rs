//! How much memory an upload may take: not as much as it is large.

use clip_archive::{SeekTable, Span, SpanDigest, SpanKind, Window};

use super::*;

/// A layer without files, but with this many spans of a byte, and seek windows of 32,000 bytes that do not compress.
pub(super) fn layer_with_windows(number: u8, windows: u32) -> LayerSection {
    let mut random = u32::from(number) + 1;
    let mut window = || Window {
        runs: vec![(0, 32_000)],
        bytes: std::iter::repeat_with(|| {
            // xorshift32
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random as u8
        })
        .take(32_000)
        .collect(),
    };
    let span = |number: u32| Span {
        tar_len: 1,
        blob_offset: number.into(),
        blob_len: 1,
        kind: SpanKind::GzipMember,
        digest: SpanDigest::of(&[]),
    };
    LayerSection {
        digest: Digest::of(&[number]),
        diff_id: Digest::of(&[number]),
        size: windows.into(),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        entries: vec![],
        seek: SeekTable {
            tar_size: windows.into(),
            spans: (0..windows).map(span).collect(),
            windows: (0..windows).map(|_| window()).collect(),
        },
    }
}

#[tokio::test]
async fn an_archive_that_would_need_too_much_memory_is_refused_and_the_flag_is_named() {
    let bench = Bench::with(Limits {
        archive_bytes: 1 << 20,
        decoded_bytes: 64_000,
    });
    let fits = archive_of(&[layer_with_windows(0, 1), layer_with_windows(1, 1)]);
    assert_eq!(bench.put(UPLOAD, Some("good"), fits).await.0, 201);
    let larger = archive_of(&[layer_with_windows(0, 1), layer_with_windows(1, 2)]);
    let (code, problem) = bench.put(UPLOAD, Some("good"), larger).await;
    assert_eq!((code, problem["reason"].as_str()), (413, Some("TooLarge")));
    let message = problem["message"].as_str().expect("a message");
    assert!(message.contains("--max-decoded-bytes"), "{message}");
}

/// A process cannot be given less memory than it has, so the test runs itself again in a shell with a limit.
#[tokio::test]
async fn an_upload_larger_than_memory_is_received_and_verified() {
    const UPLOADED: &str = "CLIP_TEST_UPLOAD";
    const NAME: &str =
        "archive_service::tests::memory::an_upload_larger_than_memory_is_received_and_verified";
    /// Kilobytes of private memory: less than the archive alone has.
    const MEMORY: &str = "81920";

    if let Some(path) = std::env::var_os(UPLOADED) {
        let bench = Bench::with(Limits {
            archive_bytes: 1 << 30,
            decoded_bytes: 64 << 20,
        });
        let file = tokio::fs::File::open(path).await.expect("opened");
        let body = Body::from_stream(ReaderStream::new(file));
        let (code, answer) = bench.put(UPLOAD, Some("good"), body).await;
        assert_eq!(code, 201, "{answer}");
        return;
    }
    let layers: Vec<_> = (0..12)
        .map(|number| layer_with_windows(number, 300))
        .collect();
    let archive = archive_of(&layers);
    assert!(archive.len() > 110_000_000, "{} bytes", archive.len());
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), archive).expect("written");

    let mut limited = std::process::Command::new("sh");
    limited.args([
        "-c",
        r#"ulimit -d "$1" && shift && exec "$@""#,
        "sh",
        MEMORY,
    ]);
    limited.arg(std::env::current_exe().expect("this program"));
    limited.args(["--exact", NAME]).env(UPLOADED, file.path());
    let output = limited.output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
