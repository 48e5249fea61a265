//! Where the unpackers disagree: which of them deviates, from what, and whom we follow.
//!
//! A rule excuses one tool for certain paths and certain fields, or for refusing the stack. Without
//! a rule every difference is a failure. `model.rs` finds out which rules apply to a stack and where;
//! the run prints how often each was needed.

use crate::unpackers::Tool;

/// What may differ, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields(u8);

impl Fields {
    /// Type, mode, owner, size, device number, link target, content.
    pub const ATTRIBUTES: Fields = Fields(1);
    pub const MTIME: Fields = Fields(2);
    pub const XATTRS: Fields = Fields(4);
    /// What an entry says of its path.
    pub const OF_ENTRY: Fields = Self::ATTRIBUTES.and(Self::MTIME).and(Self::XATTRS);
    /// Whether the path is there, and everything else.
    pub const ALL: Fields = Fields(0xff);

    pub const fn and(self, other: Fields) -> Fields {
        Fields(self.0 | other.0)
    }

    pub fn hold(self, other: Fields) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a rule excuses in one stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The tool may refuse the stack.
    Refusal,
    /// We may refuse the stack though tools accept it.
    OurRefusal,
    /// These fields of this path.
    At(Vec<u8>, Fields),
    /// These fields of this path and of all below.
    Below(Vec<u8>, Fields),
}

/// A rule that applies to a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excuse {
    pub rule: Rule,
    pub tool: Tool,
    pub scope: Scope,
}

macro_rules! rules {
    ($($name:ident: $text:literal,)*) => {
        /// By name. The texts say who deviates and why we do not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule { $($name,)* }

        impl Rule {
            /// Why it is right to differ.
            pub fn why(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }
        }
    };
}

rules! {
    Clock: "all: a directory without an entry, or one that was written into after its layer, takes the time of unpacking; ours has the time of its entry, or of the entry that implied it (S4)",
    RootWithoutEntry: "all: the root is as the runtime made it; ours has the time of the first entry (S4)",
    RootEntry: "containerd: skips the entry of the root; the specification excepts no path, umoci and storage apply it",
    OwnLayerWhiteout: "containerd, storage: a whiteout also removes what came before it in its own layer; layer.md: \"whiteout files MUST only apply to resources in lower/parent layers\"",
    OwnLayerOpaque: "containerd, storage: an opaque mark also removes directories of its own layer that have no entry of their own; layer.md, as above",
    MarkAfterEntries: "umoci: a directory that a mark hides keeps its attributes when entries below it come before the mark, and not when they come after; ours is the same for every order: the directory is a new one (S4)",
    WhiteoutMakesParents: "containerd, storage: a whiteout creates its missing parent directories; it only hides, and umoci makes nothing",
    ParentIsNoDirectory: "containerd, storage: refuse an entry below what is a file; ours and umoci: the later entry wins, and the file becomes a directory (to which umoci gives the file's attributes; ours is as S4 says)",
    DirectoryGone: "containerd, storage: set the times of a layer's directories at its end by their paths, and so fail, or hit something else, where one was replaced or hidden meanwhile",
    LinkToNothing: "all: refuse a hard link to what is not there yet; ours accepts a target that comes later in the layer",
    LinkToItself: "all: remove the old path before linking, so that a hard link at its own target, above or below it, or at a link that leads there, fails; ours links first",
    LinkToDirectory: "all: refuse a hard link to a directory, and so do we",
    LinkToSlash: "containerd: follows the symbolic link that a hard link names with a slash behind it; the others clean the name, and so do we",
    LinkAttributes: "containerd, storage: give the shared inode the owner, mode, time and attributes of the hard link's entry; umoci and ours: a hard link is a name, layer.md gives it no metadata of its own",
    DirectoryXattrs: "containerd, storage: a directory over a directory keeps attributes that the upper entry does not have; overlayfs and umoci show the upper one's alone",
    DefaultAcl: "all: what is created below a directory with a default access list inherits it from the file system; the image does not say so",
    SetGidParent: "all: a directory that no entry describes inherits group and set-group-ID bit from its parent; ours is as S4 says",
    TimeBefore1970: "containerd, storage: write 1970 where the entry says earlier",
    EmptyXattr: "all: Go's archive/tar drops PAX records without a value; an empty attribute is an attribute",
    TrustedXattr: "containerd: leaves out trusted attributes",
    SelinuxXattr: "umoci, storage: leave out the label of SELinux; containerd and ours keep what the layer says",
    UserXattrOnSpecial: "umoci, storage: refuse a user attribute where Linux allows none; containerd and ours leave it out",
    LeavesTheRoot: "storage: refuses a path or a hard link's target that leaves the root by \"..\"; containerd, umoci and ours stay in the root",
    RuntimeDirs: "ours: what is named below /proc, /sys and /dev is left out (S5), also where a link of the image leads away from there",
    OldGnuSparse: "all: know the sparse files of PAX, but not GNU tar's old type S; ours shows them",
    GlobalRecords: "umoci: refuses PAX records for all entries that follow; containerd and ours pass over them, they say nothing about a file",
    SparseOffBorders: "ours: refuse a sparse file whose pieces are not whole 512-byte blocks, which EROFS cannot map; file systems have no such holes",
    Loop: "all: refuse an entry whose parents are a loop of symbolic links, and so do we",
    Consequence: "the tool works with what an earlier rule let it have",
}
