//! The YAML that people apply is the one that the types describe.

#[test]
fn the_checked_in_crd_is_what_the_types_say() {
    expect_test::expect_file!["../clip.dev_clipimages.yaml"]
        .assert_eq(&clip_crds::clip_image_crd_yaml());
}

#[test]
fn the_chart_installs_the_same_crd() {
    expect_test::expect_file!["../../charts/clip/files/crds/clip.dev_clipimages.yaml"]
        .assert_eq(&clip_crds::clip_image_crd_yaml());
}
