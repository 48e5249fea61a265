//! `USER[:GROUP]` as image configurations write it, looked up in the image's own passwd(5) and group(5).
//!
//! The rules are those of Docker and runc (moby/sys/user, `GetExecUser`), but a line whose numbers are none is passed
//! over: there it would mean user 0.

use crate::BundleError;
use oci_spec::runtime::User;

/// The image's list of users and groups; empty where it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserFiles {
    /// `/etc/passwd`.
    pub passwd: Vec<u8>,
    /// `/etc/group`.
    pub group: Vec<u8>,
}

/// A user as the container's process gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub uid: u32,
    pub gid: u32,
    /// All groups, the primary one first. It is listed as well, so that no file that denies it something by its group's
    /// mode grants it by the mode of others (CVE-2022-36109).
    pub groups: Vec<u32>,
    /// The home directory that passwd names.
    pub home: Option<String>,
}

impl Resolved {
    pub fn to_spec(&self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid);
        user.set_gid(self.gid);
        user.set_additional_gids(Some(self.groups.clone()));
        user
    }
}

/// The largest number that is a user or a group: the kernel takes the one above for "no change".
const ID_MAX: u32 = u32::MAX - 1;

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl UserFiles {
    /// Finds `wanted`; an empty one is user 0.
    pub(crate) fn resolve(&self, wanted: &str) -> Result<Resolved, BundleError> {
        let (user, group) = match wanted.split_once(':') {
            Some((_, "")) | Some(("", _)) => return Err(BundleError::NotAUser(wanted.to_owned())),
            Some((user, group)) => (user, Some(group)),
            None if wanted.is_empty() => ("0", None),
            None => (wanted, None),
        };
        let passwd = String::from_utf8_lossy(&self.passwd);
        let groups = String::from_utf8_lossy(&self.group);
        let number = id(user);
        let found = passwd
            .lines()
            .filter_map(passwd_line)
            .find(|line| line.name == user || Some(line.uid) == number);
        let (uid, own_gid) = match (&found, number) {
            (Some(line), _) => (line.uid, line.gid),
            (None, Some(uid)) => (uid, 0),
            (None, None) => return Err(BundleError::NoSuchUser(user.to_owned())),
        };
        let gid = match group {
            None => own_gid,
            Some(group) => find_group(&groups, group)?,
        };
        let mut all = vec![gid];
        // Who asks for one group gets that one.
        if let (None, Some(line)) = (group, &found) {
            let memberships = groups.lines().filter_map(group_line);
            let of_user =
                memberships.filter(|group| group.members.split(',').any(|name| name == line.name));
            for gid in of_user.map(|group| group.gid) {
                if !all.contains(&gid) {
                    all.push(gid);
                }
            }
        }
        let home = found.map(|line| line.home.to_owned());
        Ok(Resolved {
            uid,
            gid,
            groups: all,
            home: home.filter(|home| home.starts_with('/')),
        })
    }
}

fn find_group(groups: &str, wanted: &str) -> Result<u32, BundleError> {
    let number = id(wanted);
    let found = groups
        .lines()
        .filter_map(group_line)
        .find(|line| line.name == wanted || Some(line.gid) == number);
    found
        .map(|line| line.gid)
        .or(number)
        .ok_or_else(|| BundleError::NoSuchGroup(wanted.to_owned()))
}

/// `name:password:uid:gid:comment:home:shell`
fn passwd_line(line: &str) -> Option<PasswdLine<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = id(fields.nth(1)?)?;
    let gid = id(fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default();
    Some(PasswdLine {
        name,
        uid,
        gid,
        home,
    })
}

/// `name:password:gid:member,member`
fn group_line(line: &str) -> Option<GroupLine<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = id(fields.nth(1)?)?;
    let members = fields.next().unwrap_or_default();
    Some(GroupLine { name, gid, members })
}

/// Digits only: `parse` alone would take `+0`.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id <= ID_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> UserFiles {
        UserFiles {
            passwd: b"# a comment\nroot:x:0:0:root:/root:/bin/sh\n\nbroken:x:zero:0::/:\nevil:x:+0:0::/:\n\
                app:x:1000:1001:App,,,:/home/app:/bin/sh\n1234:x:77:78::/n:\nhomeless:x:5:5\n"
                .to_vec(),
            group: b"root:x:0:\napp:x:1001:\nvideo:x:44:other,app\naudio:x:29:app\nagain:x:44:app\nbad:x:x:app\nnear:x:45:apps,ap\n"
                .to_vec(),
        }
    }

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let found = files().resolve(wanted).unwrap();
        (found.uid, found.gid, found.groups)
    }

    #[test]
    fn a_name_brings_its_group_its_memberships_and_its_home() {
        let found = files().resolve("app").unwrap();
        assert_eq!((found.uid, found.gid), (1000, 1001));
        assert_eq!(found.groups, [1001, 44, 29]);
        assert_eq!(found.home.as_deref(), Some("/home/app"));
    }

    #[test]
    fn numbers_need_no_entry_and_use_one_that_is_there() {
        assert_eq!(ids("1000"), (1000, 1001, vec![1001, 44, 29]));
        assert_eq!(ids("4242"), (4242, 0, vec![0]));
        assert_eq!(ids("4242:4343"), (4242, 4343, vec![4343]));
        assert_eq!(
            UserFiles::default().resolve("7:8").unwrap().groups,
            [8],
            "an image without /etc/passwd"
        );
    }

    #[test]
    fn nobody_in_particular_is_root() {
        assert_eq!(ids(""), (0, 0, vec![0]));
        assert_eq!(UserFiles::default().resolve("").unwrap().uid, 0);
    }

    #[test]
    fn a_group_that_is_asked_for_is_the_only_one() {
        assert_eq!(ids("app:video"), (1000, 44, vec![44]));
        assert_eq!(ids("app:4343"), (1000, 4343, vec![4343]));
    }

    #[test]
    fn a_name_of_digits_is_found_before_it_is_taken_for_a_number() {
        assert_eq!(ids("1234").0, 77);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let said = |wanted: &str| files().resolve(wanted).unwrap_err().to_string();
        assert!(said("nobody").contains(r#"/etc/passwd has no user "nobody""#));
        assert!(said("app:wheel").contains(r#"/etc/group has no group "wheel""#));
        for wanted in [
            ":",
            "app:",
            ":app",
            "broken",
            "evil",
            "-1",
            "4294967295",
            "4294967296",
        ] {
            assert!(files().resolve(wanted).is_err(), "{wanted}");
        }
    }

    #[test]
    fn an_entry_may_end_early_and_a_home_must_be_a_path() {
        let found = files().resolve("homeless").unwrap();
        assert_eq!((found.uid, found.home), (5, None));
    }
}
