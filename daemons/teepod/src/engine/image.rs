// SPDX-License-Identifier: Apache-2.0
//! Images, as VMs need them.

use super::Engine;
use crate::images::{Image, ImagesError};
use dstack_core::ids::ImageName;
use dstack_service::api::teepod1::Error;
use dstack_service::jobs::{Context, JobError};
use std::os::fd::{AsFd, OwnedFd};

impl Engine {
    /// All usable images, by name.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        let images = self.inner.images.clone();
        let listed = self.blocking(move || images.list()).await?;
        let path = self.inner.settings.image_path.display().to_string();
        listed.map_err(|e| Error::ImageInvalid(format!("{path}: {e}")))
    }

    /// Copies and checks the image in an open directory.
    ///
    /// # Errors
    /// `ImageInvalid`, `ImageExists`, `NoSpace`; nothing is left behind then.
    pub async fn import_image(&self, directory: OwnedFd, context: &Context) -> Result<(), JobError<Error>> {
        let (images, context) = (self.inner.images.clone(), context.clone());
        let imported = self
            .blocking(move || {
                images.import(directory.as_fd(), |done, total| {
                    let fraction = if total > 0 { done as f64 / total as f64 } else { -1.0 };
                    context.stage("copying and checking", fraction);
                    !context.is_canceled()
                })
            })
            .await?;
        match imported {
            Ok(name) => {
                tracing::info!("image {name} is imported");
                Ok(())
            }
            Err(ImagesError::Canceled) => Err(JobError::Canceled),
            Err(error) => Err(JobError::Failed(error.into())),
        }
    }

    /// Removes an image that no VM is pinned to.
    ///
    /// # Errors
    /// `NoSuchImage`, `ImageInUse`.
    pub async fn remove_image(&self, text: &str) -> Result<(), Error> {
        let name: ImageName = text.parse().map_err(super::errors::invalid)?;
        let users: Vec<String> = self
            .vms()
            .iter()
            .filter(|vm| vm.record().spec.image == name)
            .map(|vm| vm.name.to_string())
            .collect();
        if !users.is_empty() {
            return Err(Error::ImageInUse(format!(
                "image {name} is used by {}; remove them or give them another image first",
                users.join(", ")
            )));
        }
        let images = self.inner.images.clone();
        Ok(self.blocking(move || images.remove(&name)).await??)
    }

    /// Image for VMs that name none; empty when there is none.
    pub async fn default_image(&self) -> String {
        self.choose_image(None).await.map(|n| n.to_string()).unwrap_or_default()
    }
}
