//! Models whose files lie in memory.

use super::*;

/// Files of a folder, by their paths below it.
fn files(folder: &Path) -> Vec<(CString, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).expect("below").to_str();
            let name = CString::new(name.expect("UTF-8")).expect("name");
            found.push((name, std::fs::read(&path).expect("file")));
        }
    }
    found
}

fn views(files: &[(CString, Vec<u8>)]) -> Vec<FileView> {
    let view = |(path, data): &(CString, Vec<u8>)| FileView {
        path: path.as_ptr(),
        data: data.as_ptr().cast(),
        length: data.len(),
    };
    files.iter().map(view).collect()
}

fn open_files(views: &[FileView]) -> Result<*mut Session, (Status, String)> {
    let (mut session, mut message) = (null_mut(), [0 as c_char; 512]);
    let (room, size) = (message.as_mut_ptr(), message.len());
    let n = views.len();
    // SAFETY: addresses of this function, and of files that outlive it.
    let status =
        unsafe { trtvlm_open_files(views.as_ptr(), n, &options(), &mut session, room, size) };
    if status == Status::Ok {
        return Ok(session);
    }
    assert!(session.is_null());
    // SAFETY: the library has put a zero into it.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err((status, message.to_str().expect("UTF-8").to_owned()))
}

#[test]
fn model_in_memory_answers_as_the_one_on_disk_does() {
    let files = files(&root().join("tests/data/tiny/fastvlm-tiny-plain"));
    let in_memory = open_files(&views(&files)).expect("session");
    drop(files);
    let path = root().join("tests/data/tiny/fastvlm-tiny-plain");
    let on_disk = open_path(path.to_str().expect("UTF-8"), &options()).expect("session");
    let (frame, asked) = (picture(), question(QUESTION));
    let [answer, expected] =
        [in_memory, on_disk].map(|session| ask(session, &view(&frame), &asked, 512));
    assert_eq!(answer.0, Status::Ok);
    assert_eq!(answer.1, expected.1);
    assert_eq!(answer.2.tokens, expected.2.tokens);
    assert_eq!(trtvlm_close(in_memory), Status::Ok);
    assert_eq!(trtvlm_close(on_disk), Status::Ok);
}

#[test]
fn files_that_are_no_model_are_refused() {
    let path = CString::new("../elsewhere").expect("path");
    let mut file = FileView {
        path: path.as_ptr(),
        data: null(),
        length: 0,
    };
    let (status, message) = open_files(&[file]).expect_err("leads out");
    assert_eq!(status, Status::Argument);
    assert!(message.contains("../elsewhere"), "{message}");
    let path = CString::new("config.json").expect("path");
    file.path = path.as_ptr();
    let (status, message) = open_files(&[file]).expect_err("an empty file");
    assert_eq!(status, Status::Model, "{message}");
    file.length = 7;
    let (status, message) = open_files(&[file]).expect_err("no bytes");
    assert_eq!(status, Status::Argument);
    assert!(message.contains("config.json"), "{message}");
    file.path = null();
    assert_eq!(
        open_files(&[file]).expect_err("no path").0,
        Status::Argument
    );
    assert_ne!(open_files(&[]).expect_err("no files").0, Status::Ok);
    let (mut session, room) = (null_mut(), null_mut());
    for (files, n) in [(null(), 1), (&raw const file, usize::MAX)] {
        // SAFETY: what cannot be is not followed.
        let status = unsafe { trtvlm_open_files(files, n, null(), &mut session, room, 0) };
        assert_eq!(status, Status::Argument);
    }
}
