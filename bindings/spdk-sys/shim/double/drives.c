/* The double's drives: where they are, and what they are known by. */
#include "bdev.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int
double_drive_pull(const char *address)
{
	struct ends ends = { .count = 0 };
	struct running *aborted = NULL;
	struct medium *medium;

	pthread_mutex_lock(&g_double_lock);
	medium = double_find_medium(address);
	if (medium != NULL) {
		struct bdev *bdev = g_double_bdevs;

		medium->pulled = true;
		while (bdev != NULL && (bdev->medium != medium || bdev->removed)) {
			bdev = bdev->next;
		}
		if (bdev != NULL) {
			double_begin_removal(bdev, true, &aborted, &ends);
		}
	}
	pthread_mutex_unlock(&g_double_lock);
	double_finish_all(aborted);
	double_tell_ends(&ends);
	return medium == NULL ? -ENODEV : 0;
}

int
double_drive_plug(const char *address, const char *serial)
{
	struct medium *medium;

	pthread_mutex_lock(&g_double_lock);
	medium = double_find_medium(address);
	if (medium != NULL) {
		medium->pulled = false;
		medium->plugs++;
		if (serial != NULL) {
			snprintf(medium->serial, sizeof(medium->serial), "%s", serial);
		}
	}
	pthread_mutex_unlock(&g_double_lock);
	return medium == NULL ? -ENODEV : 0;
}

void
shim_nvme_catch_up(void)
{
	/* It is told at once. */
}

uint64_t
shim_pci_bound(const char *address)
{
	const struct medium *medium;
	uint64_t bound = 1;

	pthread_mutex_lock(&g_double_lock);
	medium = double_find_medium(address);
	if (medium != NULL) {
		bound = medium->pulled ? 0 : medium->plugs + 1;
	}
	pthread_mutex_unlock(&g_double_lock);
	return bound;
}

int
shim_bdev_nvme_identity(const char *name, struct shim_nvme_identity *identity)
{
	const struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_double_lock);
	bdev = double_find_bdev(name);
	if (bdev == NULL) {
		rc = -ENODEV;
	} else if (strcmp(bdev->module, "nvme") != 0) {
		rc = -ENOTSUP;
	} else {
		const char *serial = bdev->medium->serial;

		memset(identity, 0, sizeof(*identity));
		/* A blank is what fills it up. */
		snprintf(identity->serial, sizeof(identity->serial), "%s",
			 serial[0] == '\0' ? "double" : strcmp(serial, " ") == 0 ? "" : serial);
		snprintf(identity->model, sizeof(identity->model), "Memory of a process");
		identity->nsid = 1;
	}
	pthread_mutex_unlock(&g_double_lock);
	return rc;
}
