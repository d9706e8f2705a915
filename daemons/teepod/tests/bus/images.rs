// SPDX-License-Identifier: Apache-2.0
use crate::world::{World, make_image, options};
use dstack_service::api::teepod1::Error;
use std::fs::File;
use std::os::fd::OwnedFd;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_list_remove() {
    let world = World::new().await;
    make_image(&world.path("new"), "dstack", "0.2.0");
    let open = || OwnedFd::from(File::open(world.path("new")).unwrap());
    let import = || async { world.manager.import_image(open().into(), options(&[])).await.unwrap() };
    world.done(&import().await).await;
    let images = world.manager.list_images().await.unwrap();
    let names: Vec<&str> = images.iter().map(|i| i.0.as_str()).collect();
    assert_eq!(names, ["dstack-0.1.0", "dstack-0.2.0"]);
    assert_eq!((images[1].1.as_str(), images[1].2.len(), images[1].3), ("0.2.0", 64, false));
    assert_eq!(world.manager.default_image().await.unwrap(), "dstack-0.2.0");
    world.done(&import().await).await;

    world.create_stopped("a", &[]).await.unwrap();
    let refused = world.manager.remove_image("dstack-0.2.0").await.unwrap_err();
    assert!(matches!(&refused, Error::ImageInUse(text) if text.contains(" a;")), "{refused:?}");
    world.manager.remove_image("dstack-0.1.0").await.unwrap();
    assert!(matches!(world.manager.remove_image("dstack-0.1.0").await, Err(Error::NoSuchImage(_))));
    assert!(matches!(world.manager.remove_image("../vms").await, Err(Error::InvalidArgument(_))));

    std::fs::write(world.path("new/root.img"), "changed").unwrap();
    world.done(&world.manager.remove_vm("a").await.unwrap()).await;
    world.manager.remove_image("dstack-0.2.0").await.unwrap();
    let (result, name, text) = world.ended(&import().await).await;
    assert_eq!((result.as_str(), name.as_str()), ("failed", "org.dstack.teepod1.ImageInvalid"), "{text}");
    assert_eq!(std::fs::read_dir(world.path("images")).unwrap().count(), 0);
    let refused = world.create_stopped("b", &[]).await.unwrap_err();
    assert!(
        matches!(&refused, Error::NoSuchImage(text) if text.contains("dstack-guest-image")),
        "{refused:?}"
    );
}
