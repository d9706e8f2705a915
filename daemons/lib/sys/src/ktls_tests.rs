// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;

const IV: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

#[test]
fn keys_are_laid_out_as_the_kernel_takes_them() {
    // struct tls12_crypto_info_*: version, cipher, iv, key, salt, rec_seq; see include/uapi/linux/tls.h.
    let key = [0xaa; 32];
    let head = |version: u16, cipher: u16| [version.to_ne_bytes(), cipher.to_ne_bytes()].concat();
    let number = 0x0102_0304_0506_0708_u64;
    let all = |cipher, key: &[u8]| Keys::new(Version::Tls13, cipher, key, &IV, number).unwrap().0.to_vec();
    let sequence = [1, 2, 3, 4, 5, 6, 7, 8];
    let gcm = |number: u16, key: &[u8]| [&head(0x304, number), &IV[4..], key, &IV[..4], &sequence].concat();
    assert_eq!(all(Cipher::Aes128Gcm, &key[..16]), gcm(51, &key[..16]));
    assert_eq!(all(Cipher::Aes256Gcm, &key), gcm(52, &key));
    let chacha = [&head(0x304, 54), IV.as_slice(), &key, &sequence].concat();
    assert_eq!(all(Cipher::ChaCha20Poly1305, &key), chacha);
    let sizes = CIPHERS.map(Cipher::size);
    assert_eq!(sizes, [40, 56, 56]);
    let old = Keys::new(Version::Tls12, Cipher::Aes256Gcm, &key, &IV, number).unwrap();
    assert_eq!(old.0[..2], 0x303_u16.to_ne_bytes());
    assert!(Keys::new(Version::Tls13, Cipher::Aes128Gcm, &key, &IV, number).is_none());
    assert_eq!(format!("{old:?}"), "Keys");
}

/// What the kernel can do; says so when it cannot.
fn support() -> Option<Support> {
    match probe() {
        Ok(support) => Some(support),
        Err(error) => {
            println!("skipped: the kernel takes over no TLS: {error}");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            None
        }
    }
}

/// Two sockets, each with the other's keys.
fn joined(version: Version, cipher: Cipher) -> Pair {
    let pair = Pair::new(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    for socket in [&pair.0, &pair.1] {
        attach(socket).unwrap();
        both(socket, version, cipher).unwrap();
    }
    pair
}

#[test]
fn two_kernels_understand_each_other() {
    let Some(support) = support() else { return };
    assert!(support.any());
    for version in VERSIONS {
        for cipher in CIPHERS.into_iter().filter(|cipher| support.carries(version, *cipher)) {
            let Pair(near, far) = joined(version, cipher);
            let before = written(&near).unwrap();
            assert_eq!(rustix::net::send(&near, b"good day", SendFlags::NOSIGNAL).unwrap(), 8);
            assert_eq!(rustix::net::send(&near, b", sir", SendFlags::NOSIGNAL).unwrap(), 5);
            send_record(&near, 21, &[1, 0]).unwrap();
            let mut buffer = [0; 100];
            let mut said = Vec::new();
            let last = loop {
                let (count, kind) = receive(&far, &mut buffer).unwrap();
                if kind != DATA {
                    break (count, kind);
                }
                said.extend_from_slice(&buffer[..count]);
            };
            assert_eq!((said.as_slice(), last, &buffer[..2]), (&b"good day, sir"[..], (2, 21), &[1, 0][..]));
            assert_eq!(sequence(&near, cipher).unwrap(), 3, "{version:?} {cipher:?}");
            let wire = written(&near).unwrap() - before;
            assert_eq!(wire, 15 + 3 * cipher.overhead(version), "{version:?} {cipher:?}");
            drop(near);
            assert_eq!(receive(&far, &mut buffer).unwrap(), (0, DATA));
        }
    }
}

#[test]
fn what_does_not_open_is_told() {
    use std::io::Write;
    let Some(_) = support() else { return };
    let Pair(mut near, far) = Pair::new(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    attach(&far).unwrap();
    both(&far, Version::Tls13, Cipher::Aes128Gcm).unwrap();
    near.write_all(&[&[23, 3, 3, 0, 40][..], &[9; 40]].concat()).unwrap();
    let error = receive(&far, &mut [0; 100]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADMSG));
}
