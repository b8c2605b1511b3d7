/* The double's devices: memory, files, and devices in front of others. */
#include "double.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Requests that a channel takes at once. */
#define CHANNEL_REQUESTS_MAX 1024

#define STATUS_SUCCESS 0x000
#define STATUS_INTERNAL 0x006
#define STATUS_ABORTED 0x007
#define STATUS_MISCOMPARE 0x285

/* Operations that SPDK's device for errors looks at. */
#define FAULTY (SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_UNMAP | SHIM_BDEV_FLUSH)

/* What devices are made of. */
struct medium {
	struct medium *next;
	char name[JSON_STRING_BYTES];
	uint8_t *data;
	size_t bytes;
	/* A file behind it. */
	bool mapped;
	/* Stays when its device goes. */
	bool kept;
	/* Of a drive; empty: the one that all have at first. */
	char serial[21];
	/* Is not in its place. */
	bool pulled;
	/* How often it was put there again. */
	uint64_t plugs;
};

struct running;

struct bdev {
	struct bdev *next;
	char name[SHIM_NAME_BYTES];
	char module[SHIM_NAME_BYTES];
	uint32_t block_bytes;
	uint64_t blocks;
	/* Null for a device that forgets what is written, or is in front of another. */
	struct medium *medium;
	struct bdev *base;
	uint64_t read_us;
	uint64_t write_us;
	struct double_fault fault;
	/* Requests that do not end by themselves. */
	struct running *pending;
	unsigned opened;
	bool writer;
	/* Nobody opens it any more. */
	bool removed;
	/* It is not there: what is asked of it fails. */
	bool vanished;
	/* Who waits for its end. */
	shim_done_fn done;
	void *context;
};

struct shim_bdev_desc {
	struct shim_bdev_desc *next;
	struct bdev *bdev;
	shim_thread *thread;
	shim_bdev_event_fn event;
	void *context;
	bool writer;
};

struct shim_channel {
	shim_thread *thread;
	unsigned running;
};

/* Guards the lists, all devices and what is in them. No callback runs under it. */
static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static struct bdev *g_bdevs;
static struct shim_bdev_desc *g_descs;
static struct medium *g_media;
static bool g_flushes_drives = true;

static void abort_pending(struct bdev *bdev, struct running **aborted);
static void finish_all(struct running *list);

/* --- Devices ------------------------------------------------------------------------------------------ */

static struct bdev *
find_bdev(const char *name)
{
	for (struct bdev *bdev = g_bdevs; bdev != NULL; bdev = bdev->next) {
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

/* Ends that have to be told once the lock is given back. */
struct ends {
	struct {
		shim_done_fn done;
		void *context;
	} list[8];
	unsigned count;
};

static void
tell_ends(const struct ends *ends)
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

		for (struct bdev **at = &g_bdevs; *at != NULL; at = &(*at)->next) {
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

static struct medium *
find_medium(const char *name)
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
	struct medium *medium = what->medium == NULL ? NULL : find_medium(what->medium);
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
	struct bdev *base = find_bdev(base_name);

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
	if (find_bdev(bdev->name) != NULL) {
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
	pthread_mutex_lock(&g_lock);
	rc = fill_bdev(bdev, what);
	if (rc == 0) {
		bdev->next = g_bdevs;
		g_bdevs = bdev;
	}
	pthread_mutex_unlock(&g_lock);
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
	pthread_mutex_lock(&g_lock);
	for (const struct shim_bdev_desc *desc = g_descs; desc != NULL; desc = desc->next) {
		is_open |= desc == event.desc;
	}
	pthread_mutex_unlock(&g_lock);
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
	struct bdev *front = g_bdevs;

	bdev->removed = true;
	bdev->vanished |= vanished;
	if (vanished) {
		abort_pending(bdev, aborted);
	}
	while (front != NULL) {
		if (front->base == bdev && !front->removed) {
			remove_bdev(front, vanished, aborted);
			front = g_bdevs;
		} else {
			front = front->next;
		}
	}
	tell_all(bdev, SHIM_BDEV_REMOVED);
}

/* With the lock held. */
static void
begin_removal(struct bdev *bdev, bool vanished, struct running **aborted, struct ends *ends)
{
	remove_bdev(bdev, vanished, aborted);
	/* From the one in front, as that is what keeps those behind. */
	for (struct bdev *at = g_bdevs, *next; at != NULL; at = next) {
		next = at->next;
		if (at->removed && at->opened == 0) {
			forget_bdev(at, ends);
			next = g_bdevs;
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

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
	if (bdev == NULL || (module != NULL && strcmp(bdev->module, module) != 0)) {
		rc = -ENODEV;
	} else {
		bdev->done = done;
		bdev->context = context;
		begin_removal(bdev, done == NULL, &aborted, &ends);
	}
	pthread_mutex_unlock(&g_lock);
	finish_all(aborted);
	tell_ends(&ends);
	return rc;
}

/* --- Drives --------------------------------------------------------------------------------------------- */

int
double_drive_pull(const char *address)
{
	struct ends ends = { .count = 0 };
	struct running *aborted = NULL;
	struct medium *medium;

	pthread_mutex_lock(&g_lock);
	medium = find_medium(address);
	if (medium != NULL) {
		struct bdev *bdev = g_bdevs;

		medium->pulled = true;
		while (bdev != NULL && (bdev->medium != medium || bdev->removed)) {
			bdev = bdev->next;
		}
		if (bdev != NULL) {
			begin_removal(bdev, true, &aborted, &ends);
		}
	}
	pthread_mutex_unlock(&g_lock);
	finish_all(aborted);
	tell_ends(&ends);
	return medium == NULL ? -ENODEV : 0;
}

int
double_drive_plug(const char *address, const char *serial)
{
	struct medium *medium;

	pthread_mutex_lock(&g_lock);
	medium = find_medium(address);
	if (medium != NULL) {
		medium->pulled = false;
		medium->plugs++;
		if (serial != NULL) {
			snprintf(medium->serial, sizeof(medium->serial), "%s", serial);
		}
	}
	pthread_mutex_unlock(&g_lock);
	return medium == NULL ? -ENODEV : 0;
}

uint64_t
shim_pci_bound(const char *address)
{
	const struct medium *medium;
	uint64_t bound = 1;

	pthread_mutex_lock(&g_lock);
	medium = find_medium(address);
	if (medium != NULL) {
		bound = medium->pulled ? 0 : medium->plugs + 1;
	}
	pthread_mutex_unlock(&g_lock);
	return bound;
}

int
shim_bdev_nvme_identity(const char *name, struct shim_nvme_identity *identity)
{
	const struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
	if (bdev == NULL) {
		rc = -ENODEV;
	} else if (strcmp(bdev->module, "nvme") != 0) {
		rc = -ENOTSUP;
	} else {
		const char *serial = bdev->medium->serial;

		memset(identity, 0, sizeof(*identity));
		snprintf(identity->serial, sizeof(identity->serial), "%s",
			 serial[0] == '\0' ? "double" : serial);
		snprintf(identity->model, sizeof(identity->model), "Memory of a process");
		identity->nsid = 1;
	}
	pthread_mutex_unlock(&g_lock);
	return rc;
}

int
double_bdev_resize(const char *name, uint64_t bytes)
{
	struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
	if (bdev == NULL) {
		rc = -ENODEV;
	} else if (strcmp(bdev->module, "null") != 0) {
		rc = -EINVAL;
	} else {
		bdev->blocks = bytes / bdev->block_bytes;
		tell_all(bdev, SHIM_BDEV_RESIZED);
	}
	pthread_mutex_unlock(&g_lock);
	return rc;
}

int
double_bdev_fault(const char *name, const char *module, const struct double_fault *fault)
{
	struct bdev *bdev;
	int rc = 0;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
	if (bdev == NULL || (module != NULL && strcmp(bdev->module, module) != 0)) {
		rc = -ENODEV;
	} else {
		bdev->fault = *fault;
	}
	pthread_mutex_unlock(&g_lock);
	return rc;
}

void
double_bdev_end(void)
{
	pthread_mutex_lock(&g_lock);
	while (g_bdevs != NULL) {
		struct bdev *bdev = g_bdevs;

		g_bdevs = bdev->next;
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
	pthread_mutex_unlock(&g_lock);
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

	pthread_mutex_lock(&g_lock);
	flush = g_flushes_drives;
	pthread_mutex_unlock(&g_lock);
	return flush;
}

void
double_flush_drives(bool flush)
{
	pthread_mutex_lock(&g_lock);
	g_flushes_drives = flush;
	pthread_mutex_unlock(&g_lock);
}

/* A device in front of another may have a drive behind it. */
static bool
can_flush(const struct bdev *bdev)
{
	return g_flushes_drives || strcmp(bdev->module, "malloc") == 0 ||
	       strcmp(bdev->module, "aio") == 0;
}

static void
describe(const struct bdev *bdev, struct shim_bdev_info *info)
{
	bool keeps = bottom_of(bdev)->medium != NULL;

	memset(info, 0, sizeof(*info));
	snprintf(info->name, sizeof(info->name), "%s", bdev->name);
	snprintf(info->product, sizeof(info->product), "Double %.100s disk", bdev->module);
	snprintf(info->module, sizeof(info->module), "%s", bdev->module);
	for (size_t i = 0; bdev->name[i] != '\0'; i++) {
		info->uuid[i % sizeof(info->uuid)] ^= (uint8_t)bdev->name[i];
	}
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

	pthread_mutex_lock(&g_lock);
	for (const struct bdev *bdev = g_bdevs; bdev != NULL; bdev = bdev->next) {
		struct shim_bdev_info *more;

		if (bdev->removed) {
			continue;
		}
		more = realloc(infos, (count + 1) * sizeof(*infos));
		if (more == NULL) {
			abort();
		}
		infos = more;
		describe(bdev, &infos[count++]);
	}
	pthread_mutex_unlock(&g_lock);
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
	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
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
	pthread_mutex_unlock(&g_lock);
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

	pthread_mutex_lock(&g_lock);
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
	pthread_mutex_unlock(&g_lock);
	free(desc);
	/* On the application's thread, whose this need not be. */
	tell_ends(&ends);
}

void
shim_bdev_info(const shim_bdev_desc *desc, struct shim_bdev_info *info)
{
	pthread_mutex_lock(&g_lock);
	describe(desc->bdev, info);
	pthread_mutex_unlock(&g_lock);
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

/* --- Requests ---------------------------------------------------------------------------------------------- */

/* A request that was made. */
struct asked {
	struct shim_bdev_desc *desc;
	struct shim_channel *channel;
	uint32_t operation;
	uint64_t block;
	uint64_t blocks;
	const struct shim_slice *slices;
	uint32_t slice_count;
	/* Of compare-and-write; what is compared is in `slices`. */
	const struct shim_slice *write;
	uint32_t write_count;
	struct shim_request *request;
};

/* A request that was accepted. */
struct running {
	struct running *next;
	struct asked asked;
	struct double_timer timer;
	uint64_t delay_us;
	uint16_t status;
};

static void
tell_request(void *context)
{
	struct running running = *(struct running *)context;

	free(context);
	running.asked.channel->running--;
	running.asked.request->done(running.asked.request->context, running.status);
}

static void
start_timer(void *context)
{
	struct running *running = context;

	running->timer.run = tell_request;
	running->timer.context = running;
	running->timer.due_us = double_now_us() + running->delay_us;
	double_timer_add(&running->timer);
}

/* Never within the function that made the request. */
static void
finish(struct running *running)
{
	shim_message_fn next = running->delay_us > 0 ? start_timer : tell_request;

	if (shim_thread_send(running->asked.channel->thread, next, running) != 0) {
		abort();
	}
}

static void
finish_all(struct running *list)
{
	while (list != NULL) {
		struct running *running = list;

		list = running->next;
		finish(running);
	}
}

static bool
covers(const struct asked *asked, const struct shim_slice *slices, uint32_t count)
{
	uint64_t bytes = 0, wanted;

	for (uint32_t i = 0; i < count; i++) {
		if (__builtin_add_overflow(bytes, slices[i].bytes, &bytes)) {
			return false;
		}
	}
	return !__builtin_mul_overflow(asked->blocks, asked->desc->bdev->block_bytes, &wanted) &&
	       bytes == wanted;
}

/* What is not accepted at all. */
static int
check(const struct asked *asked)
{
	static const uint32_t on_readers = SHIM_BDEV_READ | SHIM_BDEV_COMPARE | SHIM_BDEV_RESET;
	static const uint32_t with_slices = SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_COMPARE |
					    SHIM_BDEV_COMPARE_AND_WRITE;
	const struct bdev *bdev = asked->desc->bdev;
	struct shim_bdev_info info;

	if ((asked->operation & on_readers) == 0 && !asked->desc->writer) {
		return -EBADF;
	}
	describe(bdev, &info);
	if ((info.operations & asked->operation) == 0) {
		return -ENOTSUP;
	}
	if (asked->operation == SHIM_BDEV_RESET) {
		return 0;
	}
	if ((asked->blocks == 0 && asked->operation != SHIM_BDEV_FLUSH) ||
	    asked->block > bdev->blocks || asked->blocks > bdev->blocks - asked->block) {
		return -EINVAL;
	}
	if ((asked->operation & with_slices) != 0 &&
	    !covers(asked, asked->slices, asked->slice_count)) {
		return -EINVAL;
	}
	if (asked->operation == SHIM_BDEV_COMPARE_AND_WRITE &&
	    (asked->blocks > info.compare_and_write_blocks ||
	     !covers(asked, asked->write, asked->write_count))) {
		return -EINVAL;
	}
	return 0;
}

static void
fill(uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		memcpy(place, slices[i].base, slices[i].bytes);
		place += slices[i].bytes;
	}
}

static void
fetch(const uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (place != NULL) {
			memcpy(slices[i].base, place, slices[i].bytes);
			place += slices[i].bytes;
		} else {
			memset(slices[i].base, 0, slices[i].bytes);
		}
	}
}

static bool
is_equal(const uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (memcmp(place, slices[i].base, slices[i].bytes) != 0) {
			return false;
		}
		place += slices[i].bytes;
	}
	return true;
}

/* With the lock held: what the medium does. */
static uint16_t
carry_out(const struct asked *asked, const struct bdev *bottom)
{
	uint8_t *place = NULL;

	if (bottom->medium != NULL) {
		place = bottom->medium->data + asked->block * bottom->block_bytes;
	}
	if (asked->operation == SHIM_BDEV_READ) {
		fetch(place, asked->slices, asked->slice_count);
	}
	if (place == NULL) {
		return STATUS_SUCCESS;
	}
	switch (asked->operation) {
	case SHIM_BDEV_WRITE:
		fill(place, asked->slices, asked->slice_count);
		break;
	case SHIM_BDEV_UNMAP:
	case SHIM_BDEV_WRITE_ZEROES:
		memset(place, 0, asked->blocks * bottom->block_bytes);
		break;
	case SHIM_BDEV_COMPARE:
	case SHIM_BDEV_COMPARE_AND_WRITE:
		if (!is_equal(place, asked->slices, asked->slice_count)) {
			return STATUS_MISCOMPARE;
		}
		fill(place, asked->write, asked->write_count);
		break;
	default:
		break;
	}
	return STATUS_SUCCESS;
}

/* With the lock held. Whether a fault of the device is for this request. */
static bool
take_fault(struct bdev *bdev, const struct asked *asked)
{
	if (bdev->fault.count == 0 || (bdev->fault.operations & asked->operation) == 0) {
		return false;
	}
	bdev->fault.count--;
	return true;
}

static uint64_t
delay_of(const struct bdev *bdev, uint32_t operation)
{
	return operation == SHIM_BDEV_READ ? bdev->read_us :
	       (operation & FAULTY) != 0 ? bdev->write_us : 0;
}

/* Behind those that wait already. */
static void
append(struct running **list, struct running *running)
{
	while (*list != NULL) {
		list = &(*list)->next;
	}
	running->next = NULL;
	*list = running;
}

/*
 * With the lock held: through the devices in front to the medium. False: it stays at one of them.
 */
static bool
go_down(struct running *running)
{
	const struct asked *asked = &running->asked;
	struct bdev *bdev = asked->desc->bdev;

	for (;;) {
		if (bdev->vanished) {
			running->status = STATUS_INTERNAL;
			return true;
		}
		if (bdev->fault.kind != DOUBLE_FAULT_REFUSED && take_fault(bdev, asked)) {
			running->status = bdev->fault.status;
			if (bdev->fault.kind == DOUBLE_FAULT_PENDING) {
				append(&bdev->pending, running);
				return false;
			}
			return true;
		}
		running->delay_us += delay_of(bdev, asked->operation);
		if (bdev->base == NULL) {
			running->status = carry_out(asked, bdev);
			return true;
		}
		bdev = bdev->base;
	}
}

/* With the lock held: gives up the requests that wait at a device or at those behind it. */
static void
abort_pending(struct bdev *bdev, struct running **aborted)
{
	for (; bdev != NULL; bdev = bdev->base) {
		while (bdev->pending != NULL) {
			struct running *running = bdev->pending;

			bdev->pending = running->next;
			running->status = STATUS_ABORTED;
			append(aborted, running);
		}
	}
}

/* With the lock held. Puts on `ended` what ends with it. */
static int
accept(struct running *running, struct running **ended)
{
	const struct asked *asked = &running->asked;
	struct bdev *bdev = asked->desc->bdev;
	int rc = check(asked);

	if (rc != 0) {
		return rc;
	}
	if (bdev->fault.kind == DOUBLE_FAULT_REFUSED && take_fault(bdev, asked)) {
		return -ENOMEM;
	}
	asked->channel->running++;
	if (asked->operation == SHIM_BDEV_RESET) {
		abort_pending(bdev, ended);
		running->status = bdev->vanished ? STATUS_INTERNAL : STATUS_SUCCESS;
		append(ended, running);
	} else if (go_down(running)) {
		append(ended, running);
	}
	return 0;
}

static int
submit(const struct asked *asked)
{
	struct running *ended = NULL;
	struct running *running;
	int rc;

	if (asked->channel->running >= CHANNEL_REQUESTS_MAX) {
		return -ENOMEM;
	}
	running = calloc(1, sizeof(*running));
	if (running == NULL) {
		return -ENOMEM;
	}
	running->asked = *asked;
	pthread_mutex_lock(&g_lock);
	rc = accept(running, &ended);
	pthread_mutex_unlock(&g_lock);
	if (rc != 0) {
		free(running);
	}
	finish_all(ended);
	return rc;
}

int
double_bdev_resume(const char *name)
{
	struct running *ended = NULL;
	struct running *pending;
	struct bdev *bdev;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
	if (bdev != NULL) {
		pending = bdev->pending;
		bdev->pending = NULL;
		bdev->fault.count = 0;
		while (pending != NULL) {
			struct running *running = pending;

			pending = running->next;
			if (go_down(running)) {
				append(&ended, running);
			}
		}
	}
	pthread_mutex_unlock(&g_lock);
	finish_all(ended);
	return bdev == NULL ? -ENODEV : 0;
}

int
shim_bdev_read(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
	       uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_READ, block, blocks, slices, slice_count,
				       NULL, 0, request });
}

int
shim_bdev_write(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_WRITE, block, blocks, slices,
				       slice_count, NULL, 0, request });
}

int
shim_bdev_compare(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		  uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_COMPARE, block, blocks, slices,
				       slice_count, NULL, 0, request });
}

int
shim_bdev_compare_and_write(shim_bdev_desc *desc, shim_channel *channel,
			    const struct shim_slice *compare, uint32_t compare_count,
			    const struct shim_slice *write, uint32_t write_count, uint64_t block,
			    uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_COMPARE_AND_WRITE, block, blocks,
				       compare, compare_count, write, write_count, request });
}

int
shim_bdev_flush(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_FLUSH, block, blocks, NULL, 0, NULL, 0,
				       request });
}

int
shim_bdev_unmap(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_UNMAP, block, blocks, NULL, 0, NULL, 0,
				       request });
}

int
shim_bdev_write_zeroes(shim_bdev_desc *desc, shim_channel *channel, uint64_t block,
		       uint64_t blocks, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_WRITE_ZEROES, block, blocks, NULL, 0,
				       NULL, 0, request });
}

int
shim_bdev_reset(shim_bdev_desc *desc, shim_channel *channel, struct shim_request *request)
{
	return submit(&(struct asked){ desc, channel, SHIM_BDEV_RESET, 0, 0, NULL, 0, NULL, 0,
				       request });
}
