/* The double's devices: memory, files, and devices in front of others. */
#include "bdev.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

pthread_mutex_t g_double_lock = PTHREAD_MUTEX_INITIALIZER;
struct bdev *g_double_bdevs;
static struct shim_bdev_desc *g_descs;
static struct medium *g_media;
static bool g_flushes_drives = true;
static uint64_t g_made;

/* --- Devices ------------------------------------------------------------------------------------------ */

struct bdev *
double_find_bdev(const char *name)
{
	for (struct bdev *bdev = g_double_bdevs; bdev != NULL; bdev = bdev->next) {
		if (!bdev->removed && strcmp(bdev->name, name) == 0) {
			return bdev;
		}
	}
	return NULL;
}

static void
free_medium(struct medium *medium)
{
	if (medium == NULL) {
		return;
	}
	if (medium->mapped) {
		munmap(medium->data, medium->bytes);
	} else {
		free(medium->data);
	}
	free(medium);
}

void
double_tell_ends(const struct ends *ends)
{
	for (unsigned i = 0; i < ends->count; i++) {
		double_tell(ends->list[i].done, ends->list[i].context, 0);
	}
}

/* With the lock held. The end of a device that was removed and is open no longer, and then of those
 * behind it that have waited for that. */
static void
forget_bdev(struct bdev *bdev, struct ends *ends)
{
	while (bdev != NULL && bdev->removed && bdev->opened == 0) {
		struct bdev *base = bdev->base;

		for (struct bdev **at = &g_double_bdevs; *at != NULL; at = &(*at)->next) {
			if (*at == bdev) {
				*at = bdev->next;
				break;
			}
		}
		if (bdev->done != NULL) {
			if (ends->count == sizeof(ends->list) / sizeof(ends->list[0])) {
				abort();
			}
			ends->list[ends->count].done = bdev->done;
			ends->list[ends->count++].context = bdev->context;
		}
		if (bdev->medium != NULL && !bdev->medium->kept) {
			free_medium(bdev->medium);
		}
		free(bdev);
		if (base != NULL) {
			base->opened--;
			base->writer = false;
		}
		bdev = base;
	}
}

static int
map_file(const char *path, struct medium *medium)
{
	struct stat status;
	int rc = 0;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		return -errno;
	}
	if (fstat(fd, &status) != 0) {
		rc = -errno;
	} else if (status.st_size <= 0) {
		rc = -EINVAL;
	} else {
		medium->bytes = (size_t)status.st_size;
		medium->data = mmap(NULL, medium->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		medium->mapped = medium->data != MAP_FAILED;
		rc = medium->mapped ? 0 : -errno;
	}
	close(fd);
	return rc;
}

struct medium *
double_find_medium(const char *name)
{
	for (struct medium *medium = g_media; medium != NULL; medium = medium->next) {
		if (strcmp(medium->name, name) == 0) {
			return medium;
		}
	}
	return NULL;
}

static int
make_medium(const struct double_bdev *what, struct medium **out)
{
	struct medium *medium = what->medium == NULL ? NULL : double_find_medium(what->medium);
	int rc = 0;

	if (medium != NULL) {
		*out = medium;
		return medium->pulled ? -ENODEV : 0;
	}
	medium = calloc(1, sizeof(*medium));
	if (medium == NULL) {
		return -ENOMEM;
	}
	if (what->file != NULL) {
		rc = map_file(what->file, medium);
	} else {
		medium->bytes = what->blocks * what->block_bytes;
		medium->data = calloc(what->blocks, what->block_bytes);
		rc = medium->data == NULL ? -ENOMEM : 0;
	}
	if (rc != 0) {
		free(medium);
		return rc;
	}
	if (what->medium != NULL) {
		snprintf(medium->name, sizeof(medium->name), "%s", what->medium);
		medium->kept = true;
		medium->next = g_media;
		g_media = medium;
	}
	*out = medium;
	return 0;
}

/* With the lock held. Takes the device that is behind. */
static int
put_in_front(struct bdev *bdev, const char *base_name)
{
	struct bdev *base = double_find_bdev(base_name);

	if (base == NULL) {
		return -ENODEV;
	}
	if (base->writer) {
		return -EPERM;
	}
	bdev->block_bytes = base->block_bytes;
	bdev->blocks = base->blocks;
	bdev->base = base;
	base->opened++;
	base->writer = true;
	return 0;
}

static int
fill_bdev(struct bdev *bdev, const struct double_bdev *what)
{
	int rc;

	if (bdev->name[0] == '\0') {
		return -EINVAL;
	}
	if (double_find_bdev(bdev->name) != NULL) {
		return -EEXIST;
	}
	if (what->base_name != NULL) {
		return put_in_front(bdev, what->base_name);
	}
	bdev->block_bytes = what->block_bytes;
	bdev->blocks = what->blocks;
	if ((what->block_bytes != 512 && what->block_bytes != 4096) ||
	    (what->file == NULL && (what->blocks == 0 || what->blocks > SIZE_MAX / what->block_bytes))) {
		return -EINVAL;
	}
	if (strcmp(what->module, "null") == 0) {
		return 0;
	}
	rc = make_medium(what, &bdev->medium);
	if (rc == 0 && what->file != NULL) {
		bdev->blocks = bdev->medium->bytes / what->block_bytes;
	}
	return rc;
}

int
double_bdev_create(const struct double_bdev *what)
{
	struct bdev *bdev = calloc(1, sizeof(*bdev));
	int rc;

	if (bdev == NULL) {
		return -ENOMEM;
	}
	snprintf(bdev->name, sizeof(bdev->name), "%s", what->name);
	snprintf(bdev->module, sizeof(bdev->module), "%s", what->module);
	bdev->read_us = what->read_us;
	bdev->write_us = what->write_us;
	pthread_mutex_lock(&g_double_lock);
	rc = fill_bdev(bdev, what);
	if (rc == 0) {
		bdev->made = ++g_made;
		bdev->next = g_double_bdevs;
		g_double_bdevs = bdev;
	}
	pthread_mutex_unlock(&g_double_lock);
	if (rc != 0) {
		free(bdev);
	}
	return rc;
}

/* --- Events --------------------------------------------------------------------------------------------- */

struct event {
	struct shim_bdev_desc *desc;
	enum shim_bdev_event event;
};

static void
tell_event(void *context)
{
	struct event event = *(struct event *)context;
	bool is_open = false;

	free(context);
	/* It may have been closed meanwhile; that happens on this thread. */
	pthread_mutex_lock(&g_double_lock);
	for (const struct shim_bdev_desc *desc = g_descs; desc != NULL; desc = desc->next) {
		is_open |= desc == event.desc;
	}
	pthread_mutex_unlock(&g_double_lock);
	if (is_open) {
		event.desc->event(event.desc->context, event.event);
	}
}

/* With the lock held. */
static void
tell_all(const struct bdev *bdev, enum shim_bdev_event what)
{
	for (struct shim_bdev_desc *desc = g_descs; desc != NULL; desc = desc->next) {
		struct event *event;

		if (desc->bdev != bdev) {
			continue;
		}
		event = malloc(sizeof(*event));
		if (event == NULL) {
			abort();
		}
		event->desc = desc;
		event->event = what;
		if (shim_thread_send(desc->thread, tell_event, event) != 0) {
			free(event);
		}
	}
}

/* With the lock held. Whoever is in front of a device goes before it. */
static void
remove_bdev(struct bdev *bdev, bool vanished, struct running **aborted)
{
	struct bdev *front = g_double_bdevs;

	bdev->removed = true;
	bdev->vanished |= vanished;
	if (vanished) {
		double_abort_pending(bdev, aborted);
	}
	while (front != NULL) {
		if (front->base == bdev && !front->removed) {
			remove_bdev(front, vanished, aborted);
			front = g_double_bdevs;
		} else {
			front = front->next;
		}
	}
	tell_all(bdev, SHIM_BDEV_REMOVED);
}

void
double_begin_removal(struct bdev *bdev, bool vanished, struct running **aborted, struct ends *ends)
{
	remove_bdev(bdev, vanished, aborted);
	/* From the one in front, as that is what keeps those behind. */
	for (struct bdev *at = g_double_bdevs, *next; at != NULL; at = next) {
		next = at->next;
		if (at->removed && at->opened == 0) {
			forget_bdev(at, ends);
			next = g_double_bdevs;
		}
	}
}

int
double_bdev_remove(const char *name, const char *module, shim_done_fn done, void *context)
{
	struct ends ends = { .count = 0 };
	struct running *aborted = NULL;
	struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_double_lock);
	bdev = double_find_bdev(name);
	if (bdev == NULL || (module != NULL && strcmp(bdev->module, module) != 0)) {
		rc = -ENODEV;
	} else {
		bdev->done = done;
		bdev->context = context;
		double_begin_removal(bdev, done == NULL, &aborted, &ends);
	}
	pthread_mutex_unlock(&g_double_lock);
	double_finish_all(aborted);
	double_tell_ends(&ends);
	return rc;
}

int
double_bdev_resize(const char *name, uint64_t bytes)
{
	struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_double_lock);
	bdev = double_find_bdev(name);
	if (bdev == NULL) {
		rc = -ENODEV;
	} else if (strcmp(bdev->module, "null") != 0) {
		rc = -EINVAL;
	} else {
		bdev->blocks = bytes / bdev->block_bytes;
		tell_all(bdev, SHIM_BDEV_RESIZED);
	}
	pthread_mutex_unlock(&g_double_lock);
	return rc;
}

int
double_bdev_fault(const char *name, const char *module, const struct double_fault *fault)
{
	struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_double_lock);
	bdev = double_find_bdev(name);
	if (bdev == NULL || (module != NULL && strcmp(bdev->module, module) != 0)) {
		rc = -ENODEV;
	} else {
		bdev->fault = *fault;
	}
	pthread_mutex_unlock(&g_double_lock);
	return rc;
}

void
double_bdev_end(void)
{
	pthread_mutex_lock(&g_double_lock);
	while (g_double_bdevs != NULL) {
		struct bdev *bdev = g_double_bdevs;

		g_double_bdevs = bdev->next;
		if (bdev->medium != NULL && !bdev->medium->kept) {
			free_medium(bdev->medium);
		}
		free(bdev);
	}
	while (g_media != NULL) {
		struct medium *medium = g_media;

		g_media = medium->next;
		free_medium(medium);
	}
	pthread_mutex_unlock(&g_double_lock);
}

/* --- What there is --------------------------------------------------------------------------------------- */

/* The device that has the medium. */
static const struct bdev *
bottom_of(const struct bdev *bdev)
{
	while (bdev->base != NULL) {
		bdev = bdev->base;
	}
	return bdev;
}

bool
double_flushes_drives(void)
{
	bool flush;

	pthread_mutex_lock(&g_double_lock);
	flush = g_flushes_drives;
	pthread_mutex_unlock(&g_double_lock);
	return flush;
}

void
double_flush_drives(bool flush)
{
	pthread_mutex_lock(&g_double_lock);
	g_flushes_drives = flush;
	pthread_mutex_unlock(&g_double_lock);
}

/* A device in front of another may have a drive behind it. */
static bool
can_flush(const struct bdev *bdev)
{
	return g_flushes_drives || strcmp(bdev->module, "malloc") == 0 ||
	       strcmp(bdev->module, "aio") == 0;
}

void
double_describe(const struct bdev *bdev, struct shim_bdev_info *info)
{
	bool keeps = bottom_of(bdev)->medium != NULL;

	memset(info, 0, sizeof(*info));
	snprintf(info->name, sizeof(info->name), "%s", bdev->name);
	snprintf(info->product, sizeof(info->product), "Double %.100s disk", bdev->module);
	snprintf(info->module, sizeof(info->module), "%s", bdev->module);
	/* It has none of its own, so one is made up when it is made. */
	memcpy(info->uuid, &bdev->made, sizeof(bdev->made));
	info->block_bytes = bdev->block_bytes;
	info->blocks = bdev->blocks;
	info->physical_block_bytes = bdev->block_bytes;
	info->write_unit_blocks = 1;
	info->compare_and_write_blocks = 1;
	info->buffer_align = 8;
	info->write_cache = keeps;
	info->operations = SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_WRITE_ZEROES |
			   SHIM_BDEV_COMPARE | SHIM_BDEV_COMPARE_AND_WRITE | SHIM_BDEV_RESET;
	if (keeps) {
		info->operations |= SHIM_BDEV_UNMAP;
		if (can_flush(bdev)) {
			info->operations |= SHIM_BDEV_FLUSH;
		}
	}
}

void
shim_bdev_for_each(shim_bdev_each_fn each, void *context)
{
	struct shim_bdev_info *infos = NULL;
	size_t count = 0;

	pthread_mutex_lock(&g_double_lock);
	for (const struct bdev *bdev = g_double_bdevs; bdev != NULL; bdev = bdev->next) {
		struct shim_bdev_info *more;

		if (bdev->removed) {
			continue;
		}
		more = realloc(infos, (count + 1) * sizeof(*infos));
		if (more == NULL) {
			abort();
		}
		infos = more;
		double_describe(bdev, &infos[count++]);
	}
	pthread_mutex_unlock(&g_double_lock);
	for (size_t i = 0; i < count; i++) {
		each(context, &infos[i]);
	}
	free(infos);
}

int
shim_bdev_open(const char *name, bool write, shim_bdev_event_fn event, void *context,
	       shim_bdev_desc **out)
{
	struct shim_bdev_desc *desc = calloc(1, sizeof(*desc));
	struct bdev *bdev;
	int rc = 0;

	if (desc == NULL) {
		return -ENOMEM;
	}
	pthread_mutex_lock(&g_double_lock);
	bdev = double_find_bdev(name);
	if (bdev == NULL) {
		rc = -ENODEV;
	} else if (write && bdev->writer) {
		rc = -EPERM;
	} else {
		bdev->opened++;
		bdev->writer |= write;
		desc->bdev = bdev;
		desc->thread = shim_thread_current();
		desc->event = event;
		desc->context = context;
		desc->writer = write;
		desc->next = g_descs;
		g_descs = desc;
		*out = desc;
	}
	pthread_mutex_unlock(&g_double_lock);
	if (rc != 0) {
		free(desc);
	}
	return rc;
}

void
shim_bdev_close(shim_bdev_desc *desc)
{
	struct ends ends = { .count = 0 };
	struct bdev *bdev = desc->bdev;

	pthread_mutex_lock(&g_double_lock);
	for (struct shim_bdev_desc **at = &g_descs; *at != NULL; at = &(*at)->next) {
		if (*at == desc) {
			*at = desc->next;
			break;
		}
	}
	bdev->opened--;
	if (desc->writer) {
		bdev->writer = false;
	}
	forget_bdev(bdev, &ends);
	pthread_mutex_unlock(&g_double_lock);
	free(desc);
	/* On the application's thread, whose this need not be. */
	double_tell_ends(&ends);
}

void
shim_bdev_info(const shim_bdev_desc *desc, struct shim_bdev_info *info)
{
	pthread_mutex_lock(&g_double_lock);
	double_describe(desc->bdev, info);
	pthread_mutex_unlock(&g_double_lock);
}

shim_channel *
shim_bdev_channel(shim_bdev_desc *desc)
{
	struct shim_channel *channel;

	(void)desc;
	if (shim_thread_current() == NULL) {
		return NULL;
	}
	channel = calloc(1, sizeof(*channel));
	if (channel != NULL) {
		channel->thread = shim_thread_current();
		double_thread_count_channels(channel->thread, 1);
	}
	return channel;
}

void
shim_channel_put(shim_channel *channel)
{
	double_thread_count_channels(channel->thread, -1);
	free(channel);
}
