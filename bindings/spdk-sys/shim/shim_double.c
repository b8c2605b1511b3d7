/*
 * shim.h over memory: a double of SPDK for machines without it. Threads, pollers, messages, channels,
 * the order of callbacks and the errors are as SPDK has them; what is behind a device is memory of this
 * process. It knows the configuration methods that the tests need:
 *
 *   bdev_malloc_create {name, num_blocks, block_size}    bdev_malloc_delete {name}
 *   bdev_null_create {name, num_blocks, block_size}      bdev_null_delete {name}
 *   bdev_null_resize {name, new_size}                    (MiB)
 *   bdev_error_create {base_name}                        (a device EE_NAME in front of NAME)
 *   bdev_error_inject_error {name, io_type, error_type, num}    ("failure" only)
 *   bdev_error_delete {name}
 */
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- The library ------------------------------------------------------------------------------ */

const char *
shim_version(void)
{
	return "SPDK double";
}

bool
shim_is_double(void)
{
	return true;
}

static shim_log_fn g_log;
static enum shim_log_level g_log_level = SHIM_LOG_NOTICE;

void
shim_log_open(shim_log_fn log, enum shim_log_level level)
{
	g_log = log;
	g_log_level = level;
}

__attribute__((format(printf, 2, 3)))
static void
log_line(enum shim_log_level level, const char *format, ...)
{
	char message[512];
	va_list args;

	if (g_log == NULL || level > g_log_level) {
		return;
	}
	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	g_log(level, __FILE__, __LINE__, NULL, message);
}

/* --- The environment ---------------------------------------------------------------------------- */

static bool g_env_done;

int
shim_env_init(const struct shim_env_options *options)
{
	if (g_env_done) {
		return -EALREADY;
	}
	if (options->name == NULL) {
		return -EINVAL;
	}
	g_env_done = true;
	return 0;
}

void
shim_env_fini(void)
{
}

void *
shim_dma_alloc(size_t bytes, size_t align)
{
	void *memory;

	if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, bytes) != 0) {
		return NULL;
	}
	memset(memory, 0, bytes);
	return memory;
}

void
shim_dma_free(void *memory)
{
	free(memory);
}

/* --- Threads ------------------------------------------------------------------------------------- */

struct message {
	struct message *next;
	shim_message_fn run;
	void *context;
};

struct shim_poller {
	struct shim_poller *next;
	struct shim_thread *thread;
	shim_poller_fn poll;
	void *context;
	uint64_t period_us;
	uint64_t due_us;
	bool gone;
};

struct shim_thread {
	pthread_mutex_t lock;
	/* Guarded by the lock. */
	struct message *first;
	struct message **last;
	bool exited;
	/* The polling thread's own. */
	struct shim_poller *pollers;
	unsigned channels;
	bool exiting;
};

/* Messages of one poll when nothing is said. */
#define MESSAGES_DEFAULT 8

static struct shim_thread *g_app_thread;
static __thread struct shim_thread *t_current;

static uint64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int
shim_threads_init(void)
{
	return g_env_done ? 0 : -EINVAL;
}

void
shim_threads_fini(void)
{
	g_app_thread = NULL;
}

shim_thread *
shim_thread_create(const char *name)
{
	struct shim_thread *thread = calloc(1, sizeof(*thread));

	(void)name;
	if (thread == NULL) {
		return NULL;
	}
	pthread_mutex_init(&thread->lock, NULL);
	thread->last = &thread->first;
	if (g_app_thread == NULL) {
		g_app_thread = thread;
	}
	return thread;
}

void
shim_thread_set(shim_thread *thread)
{
	t_current = thread;
}

shim_thread *
shim_thread_current(void)
{
	return t_current;
}

static struct message *
take_message(struct shim_thread *thread)
{
	struct message *message;

	pthread_mutex_lock(&thread->lock);
	message = thread->first;
	if (message != NULL) {
		thread->first = message->next;
		if (thread->first == NULL) {
			thread->last = &thread->first;
		}
	}
	pthread_mutex_unlock(&thread->lock);
	return message;
}

static bool
run_messages(struct shim_thread *thread, uint32_t messages_max)
{
	uint32_t left = messages_max == 0 ? MESSAGES_DEFAULT : messages_max;
	bool busy = false;

	while (left-- > 0) {
		struct message *message = take_message(thread);

		if (message == NULL) {
			break;
		}
		message->run(message->context);
		free(message);
		busy = true;
	}
	return busy;
}

static void
drop_gone_pollers(struct shim_thread *thread)
{
	struct shim_poller **at = &thread->pollers;

	while (*at != NULL) {
		struct shim_poller *poller = *at;

		if (poller->gone) {
			*at = poller->next;
			free(poller);
		} else {
			at = &poller->next;
		}
	}
}

static bool
run_pollers(struct shim_thread *thread)
{
	bool busy = false;

	for (struct shim_poller *poller = thread->pollers; poller != NULL; poller = poller->next) {
		if (poller->gone) {
			continue;
		}
		if (poller->period_us > 0) {
			uint64_t now = now_us();

			if (now < poller->due_us) {
				continue;
			}
			poller->due_us = now + poller->period_us;
		}
		busy |= poller->poll(poller->context);
	}
	drop_gone_pollers(thread);
	return busy;
}

bool
shim_thread_poll(shim_thread *thread, uint32_t messages_max)
{
	struct shim_thread *outer = t_current;
	bool busy, done;

	t_current = thread;
	busy = run_messages(thread, messages_max);
	busy |= run_pollers(thread);
	if (thread->exiting && thread->pollers == NULL && thread->channels == 0) {
		pthread_mutex_lock(&thread->lock);
		done = thread->first == NULL;
		thread->exited |= done;
		pthread_mutex_unlock(&thread->lock);
	}
	t_current = outer;
	return busy;
}

bool
shim_thread_has_active_pollers(const shim_thread *thread)
{
	for (const struct shim_poller *poller = thread->pollers; poller != NULL; poller = poller->next) {
		if (!poller->gone && poller->period_us == 0) {
			return true;
		}
	}
	return false;
}

int64_t
shim_thread_next_poll_us(const shim_thread *thread)
{
	uint64_t now = now_us();
	int64_t next = -1;

	for (const struct shim_poller *poller = thread->pollers; poller != NULL; poller = poller->next) {
		int64_t left;

		if (poller->gone || poller->period_us == 0) {
			continue;
		}
		left = poller->due_us > now ? (int64_t)(poller->due_us - now) : 0;
		if (next < 0 || left < next) {
			next = left;
		}
	}
	return next;
}

int
shim_thread_send(const shim_thread *to, shim_message_fn run, void *context)
{
	struct shim_thread *thread = (struct shim_thread *)(uintptr_t)to;
	struct message *message = malloc(sizeof(*message));
	bool exited;

	if (message == NULL) {
		return -ENOMEM;
	}
	message->next = NULL;
	message->run = run;
	message->context = context;
	pthread_mutex_lock(&thread->lock);
	exited = thread->exited;
	if (!exited) {
		*thread->last = message;
		thread->last = &message->next;
	}
	pthread_mutex_unlock(&thread->lock);
	if (exited) {
		free(message);
		return -EIO;
	}
	return 0;
}

int
shim_thread_exit(shim_thread *thread)
{
	thread->exiting = true;
	return 0;
}

bool
shim_thread_is_exited(const shim_thread *thread)
{
	return thread->exited;
}

void
shim_thread_destroy(shim_thread *thread)
{
	if (t_current == thread) {
		t_current = NULL;
	}
	pthread_mutex_destroy(&thread->lock);
	free(thread);
}

shim_poller *
shim_poller_register(shim_poller_fn poll, void *context, uint64_t period_us)
{
	struct shim_poller *poller;

	if (t_current == NULL) {
		return NULL;
	}
	poller = calloc(1, sizeof(*poller));
	if (poller == NULL) {
		return NULL;
	}
	poller->thread = t_current;
	poller->poll = poll;
	poller->context = context;
	poller->period_us = period_us;
	poller->due_us = now_us() + period_us;
	poller->next = t_current->pollers;
	t_current->pollers = poller;
	return poller;
}

void
shim_poller_unregister(shim_poller *poller)
{
	/* It may be the one that runs. */
	poller->gone = true;
}

/* --- Block devices ---------------------------------------------------------------------------------- */

/* Requests that a channel takes at once. */
#define CHANNEL_REQUESTS_MAX 1024

#define STATUS_SUCCESS 0x000
#define STATUS_INTERNAL 0x006
#define STATUS_ABORTED_RESET 0x007
#define STATUS_OUT_OF_RANGE 0x080
#define STATUS_MISCOMPARE 0x285

struct bdev {
	struct bdev *next;
	char name[SHIM_NAME_BYTES];
	const char *module;
	uint32_t block_bytes;
	uint64_t blocks;
	/* Null for a device that forgets what is written. */
	uint8_t *data;
	struct bdev *base;
	/* Requests that are to fail, and how. */
	unsigned failures;
	int failure;
	uint32_t failing;
	unsigned opened;
	bool writer;
	bool removed;
	/* Who waits for its end. */
	shim_done_fn done;
	void *context;
};

struct shim_bdev_desc {
	struct shim_bdev_desc *next;
	struct bdev *bdev;
	struct shim_thread *thread;
	shim_bdev_event_fn event;
	void *context;
	bool writer;
};

struct shim_channel {
	struct shim_thread *thread;
	unsigned running;
};

/* Guards the lists, all devices and what is in them. */
static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static struct bdev *g_bdevs;
static struct shim_bdev_desc *g_descs;

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

/* With the lock held. The end of a device that was removed and is open no longer. */
static void
forget_bdev(struct bdev *bdev)
{
	for (struct bdev **at = &g_bdevs; *at != NULL; at = &(*at)->next) {
		if (*at == bdev) {
			*at = bdev->next;
			break;
		}
	}
	free(bdev->data);
	free(bdev);
}

static void
describe(const struct bdev *bdev, struct shim_bdev_info *info)
{
	memset(info, 0, sizeof(*info));
	snprintf(info->name, sizeof(info->name), "%s", bdev->name);
	snprintf(info->product, sizeof(info->product), "Double %s disk", bdev->module);
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
	info->write_cache = bdev->data != NULL || bdev->base != NULL;
	info->operations = SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_RESET;
	if (bdev->data != NULL || bdev->base != NULL) {
		info->operations |= SHIM_BDEV_FLUSH | SHIM_BDEV_UNMAP | SHIM_BDEV_WRITE_ZEROES |
				    SHIM_BDEV_COMPARE | SHIM_BDEV_COMPARE_AND_WRITE;
	}
}

void
shim_bdev_for_each(shim_bdev_each_fn each, void *context)
{
	pthread_mutex_lock(&g_lock);
	for (const struct bdev *bdev = g_bdevs; bdev != NULL; bdev = bdev->next) {
		struct shim_bdev_info info;

		if (bdev->removed) {
			continue;
		}
		describe(bdev, &info);
		each(context, &info);
	}
	pthread_mutex_unlock(&g_lock);
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
		desc->thread = t_current;
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

static void
close_locked(struct shim_bdev_desc *desc, shim_done_fn *done, void **context)
{
	struct bdev *bdev = desc->bdev;

	for (struct shim_bdev_desc **at = &g_descs; *at != NULL; at = &(*at)->next) {
		if (*at == desc) {
			*at = desc->next;
			break;
		}
	}
	if (desc->writer) {
		bdev->writer = false;
	}
	if (--bdev->opened == 0 && bdev->removed) {
		*done = bdev->done;
		*context = bdev->context;
		forget_bdev(bdev);
	}
}

void
shim_bdev_close(shim_bdev_desc *desc)
{
	shim_done_fn done = NULL;
	void *context = NULL;

	pthread_mutex_lock(&g_lock);
	close_locked(desc, &done, &context);
	pthread_mutex_unlock(&g_lock);
	free(desc);
	if (done != NULL) {
		done(context, 0);
	}
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
	if (t_current == NULL) {
		return NULL;
	}
	channel = calloc(1, sizeof(*channel));
	if (channel != NULL) {
		channel->thread = t_current;
		t_current->channels++;
	}
	return channel;
}

void
shim_channel_put(shim_channel *channel)
{
	channel->thread->channels--;
	free(channel);
}

struct ended {
	struct shim_channel *channel;
	struct shim_request *request;
	uint16_t status;
};

static void
tell_request(void *context)
{
	struct ended ended = *(struct ended *)context;

	free(context);
	ended.channel->running--;
	ended.request->done(ended.request->context, ended.status);
}

/* Room for one more request, whose end is told by `finish`. */
static int
begin(struct shim_channel *channel, struct shim_request *request, struct ended **out)
{
	struct ended *ended;

	if (channel->running >= CHANNEL_REQUESTS_MAX) {
		return -ENOMEM;
	}
	ended = malloc(sizeof(*ended));
	if (ended == NULL) {
		return -ENOMEM;
	}
	ended->channel = channel;
	ended->request = request;
	*out = ended;
	return 0;
}

static int
finish(struct ended *ended, uint16_t status)
{
	int rc;

	ended->status = status;
	ended->channel->running++;
	rc = shim_thread_send(ended->channel->thread, tell_request, ended);
	if (rc != 0) {
		ended->channel->running--;
		free(ended);
	}
	return rc;
}

/* Blocks of a device that a request is for. */
struct target {
	struct shim_bdev_desc *desc;
	uint32_t operation;
	uint64_t block;
	uint64_t blocks;
};

/* What SPDK refuses to accept at all. */
static int
check(const struct target *target)
{
	const struct bdev *bdev = target->desc->bdev;
	bool reads = target->operation == SHIM_BDEV_READ || target->operation == SHIM_BDEV_FLUSH ||
		     target->operation == SHIM_BDEV_COMPARE;

	if ((target->blocks == 0 && target->operation != SHIM_BDEV_FLUSH) ||
	    target->block > bdev->blocks || target->blocks > bdev->blocks - target->block) {
		return -EINVAL;
	}
	return reads || target->desc->writer ? 0 : -EBADF;
}

/*
 * Begins a request that SPDK would accept, and takes the lock, which `leave` gives back. `place` is
 * where its blocks are, or null on a device that keeps nothing or if the status is not success.
 */
static int
enter(const struct target *target, struct shim_channel *channel, struct shim_request *request,
      struct ended **ended, uint8_t **place)
{
	struct bdev *bdev = target->desc->bdev;
	int rc = begin(channel, request, ended);

	if (rc != 0) {
		return rc;
	}
	pthread_mutex_lock(&g_lock);
	rc = check(target);
	if (rc != 0) {
		pthread_mutex_unlock(&g_lock);
		free(*ended);
		return rc;
	}
	*place = NULL;
	(*ended)->status = STATUS_SUCCESS;
	if (bdev->removed) {
		(*ended)->status = STATUS_ABORTED_RESET;
	} else if (bdev->failures > 0 && (bdev->failing & target->operation) != 0) {
		bdev->failures--;
		(*ended)->status = STATUS_INTERNAL;
	} else {
		while (bdev->base != NULL) {
			bdev = bdev->base;
		}
		if (bdev->data != NULL) {
			*place = bdev->data + target->block * bdev->block_bytes;
		}
	}
	return 0;
}

static int
leave(struct ended *ended)
{
	pthread_mutex_unlock(&g_lock);
	return finish(ended, ended->status);
}

/* Whether the slices are together as long as the blocks. */
static bool
covers(const struct target *target, const struct shim_slice *slices, uint32_t count)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < count; i++) {
		bytes += slices[i].bytes;
	}
	return bytes == target->blocks * target->desc->bdev->block_bytes;
}

static void
fill(uint8_t *place, const struct shim_slice *slices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		memcpy(place, slices[i].base, slices[i].bytes);
		place += slices[i].bytes;
	}
}

int
shim_bdev_read(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
	       uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	struct target target = { desc, SHIM_BDEV_READ, block, blocks };
	struct ended *ended;
	uint8_t *place;
	int rc;

	if (!covers(&target, slices, slice_count)) {
		return -EINVAL;
	}
	rc = enter(&target, channel, request, &ended, &place);
	if (rc != 0) {
		return rc;
	}
	for (uint32_t i = 0; ended->status == STATUS_SUCCESS && i < slice_count; i++) {
		if (place != NULL) {
			memcpy(slices[i].base, place, slices[i].bytes);
			place += slices[i].bytes;
		} else {
			memset(slices[i].base, 0, slices[i].bytes);
		}
	}
	return leave(ended);
}

int
shim_bdev_write(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	struct target target = { desc, SHIM_BDEV_WRITE, block, blocks };
	struct ended *ended;
	uint8_t *place;
	int rc;

	if (!covers(&target, slices, slice_count)) {
		return -EINVAL;
	}
	rc = enter(&target, channel, request, &ended, &place);
	if (rc != 0) {
		return rc;
	}
	if (place != NULL) {
		fill(place, slices, slice_count);
	}
	return leave(ended);
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

int
shim_bdev_compare(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		  uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	struct target target = { desc, SHIM_BDEV_COMPARE, block, blocks };
	struct ended *ended;
	uint8_t *place;
	int rc;

	if (!covers(&target, slices, slice_count)) {
		return -EINVAL;
	}
	rc = enter(&target, channel, request, &ended, &place);
	if (rc != 0) {
		return rc;
	}
	if (place != NULL && !is_equal(place, slices, slice_count)) {
		ended->status = STATUS_MISCOMPARE;
	}
	return leave(ended);
}

int
shim_bdev_compare_and_write(shim_bdev_desc *desc, shim_channel *channel,
			    const struct shim_slice *compare, uint32_t compare_count,
			    const struct shim_slice *write, uint32_t write_count, uint64_t block,
			    uint64_t blocks, struct shim_request *request)
{
	struct target target = { desc, SHIM_BDEV_COMPARE_AND_WRITE, block, blocks };
	struct ended *ended;
	uint8_t *place;
	int rc;

	if (!covers(&target, compare, compare_count) || !covers(&target, write, write_count) ||
	    blocks != 1) {
		return -EINVAL;
	}
	rc = enter(&target, channel, request, &ended, &place);
	if (rc != 0) {
		return rc;
	}
	if (place != NULL) {
		if (is_equal(place, compare, compare_count)) {
			fill(place, write, write_count);
		} else {
			ended->status = STATUS_MISCOMPARE;
		}
	}
	return leave(ended);
}

/* Flush, unmap and write zeroes. */
static int
without_data(const struct target *target, struct shim_channel *channel, struct shim_request *request)
{
	struct ended *ended;
	uint8_t *place;
	int rc = enter(target, channel, request, &ended, &place);

	if (rc != 0) {
		return rc;
	}
	if (place != NULL && target->operation != SHIM_BDEV_FLUSH) {
		memset(place, 0, target->blocks * target->desc->bdev->block_bytes);
	}
	return leave(ended);
}

int
shim_bdev_flush(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return without_data(&(struct target){ desc, SHIM_BDEV_FLUSH, block, blocks }, channel, request);
}

int
shim_bdev_unmap(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return without_data(&(struct target){ desc, SHIM_BDEV_UNMAP, block, blocks }, channel, request);
}

int
shim_bdev_write_zeroes(shim_bdev_desc *desc, shim_channel *channel, uint64_t block,
		       uint64_t blocks, struct shim_request *request)
{
	return without_data(&(struct target){ desc, SHIM_BDEV_WRITE_ZEROES, block, blocks }, channel,
			    request);
}

int
shim_bdev_reset(shim_bdev_desc *desc, shim_channel *channel, struct shim_request *request)
{
	struct ended *ended;
	int rc = begin(channel, request, &ended);

	(void)desc;
	return rc != 0 ? rc : finish(ended, STATUS_SUCCESS);
}

/* --- JSON: just enough for configurations ------------------------------------------------------------ */

#define JSON_DEPTH_MAX 32
#define JSON_STRING_BYTES 128

struct json {
	const char *at;
	const char *end;
};

static void
skip_space(struct json *json)
{
	while (json->at < json->end && strchr(" \t\r\n", *json->at) != NULL) {
		json->at++;
	}
}

static bool
take(struct json *json, char wanted)
{
	skip_space(json);
	if (json->at < json->end && *json->at == wanted) {
		json->at++;
		return true;
	}
	return false;
}

/* What does not fit, or escapes other than the plain ones, is an error. */
static bool
take_string(struct json *json, char out[JSON_STRING_BYTES])
{
	size_t length = 0;

	if (!take(json, '"')) {
		return false;
	}
	while (json->at < json->end && *json->at != '"') {
		char byte = *json->at++;

		if (byte == '\\') {
			if (json->at == json->end || strchr("\"\\/", *json->at) == NULL) {
				return false;
			}
			byte = *json->at++;
		}
		if (length + 1 >= JSON_STRING_BYTES) {
			return false;
		}
		out[length++] = byte;
	}
	out[length] = '\0';
	return take(json, '"');
}

static bool
take_number(struct json *json, uint64_t *out)
{
	uint64_t value = 0;
	bool any = false;

	skip_space(json);
	while (json->at < json->end && *json->at >= '0' && *json->at <= '9') {
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*json->at - '0'), &value)) {
			return false;
		}
		json->at++;
		any = true;
	}
	*out = value;
	return any;
}

static bool skip_value(struct json *json, unsigned depth);

/* The rest of a list or an object whose opening was taken. */
static bool
skip_members(struct json *json, char close, bool named, unsigned depth)
{
	char name[JSON_STRING_BYTES];

	if (take(json, close)) {
		return true;
	}
	do {
		if (named && !(take_string(json, name) && take(json, ':'))) {
			return false;
		}
		if (!skip_value(json, depth)) {
			return false;
		}
	} while (take(json, ','));
	return take(json, close);
}

static bool
skip_value(struct json *json, unsigned depth)
{
	char text[JSON_STRING_BYTES];
	const char *begin;

	if (depth >= JSON_DEPTH_MAX) {
		return false;
	}
	if (take(json, '{')) {
		return skip_members(json, '}', true, depth + 1);
	}
	if (take(json, '[')) {
		return skip_members(json, ']', false, depth + 1);
	}
	skip_space(json);
	if (json->at < json->end && *json->at == '"') {
		return take_string(json, text);
	}
	/* A number, true, false or null. */
	begin = json->at;
	while (json->at < json->end && strchr("+-.0123456789aeflnrstuE", *json->at) != NULL) {
		json->at++;
	}
	return json->at > begin;
}

/* --- Subsystems and their configuration ---------------------------------------------------------------- */

/* Every parameter that some method knows. */
struct params {
	char name[JSON_STRING_BYTES];
	char base_name[JSON_STRING_BYTES];
	char io_type[JSON_STRING_BYTES];
	char error_type[JSON_STRING_BYTES];
	uint64_t num_blocks;
	uint64_t block_size;
	uint64_t new_size;
	uint64_t num;
};

static bool
take_params(struct json *json, struct params *params)
{
	const struct {
		const char *name;
		char *text;
		uint64_t *number;
	} known[] = {
		{ "name", params->name, NULL },
		{ "base_name", params->base_name, NULL },
		{ "io_type", params->io_type, NULL },
		{ "error_type", params->error_type, NULL },
		{ "num_blocks", NULL, &params->num_blocks },
		{ "block_size", NULL, &params->block_size },
		{ "new_size", NULL, &params->new_size },
		{ "num", NULL, &params->num },
	};
	char name[JSON_STRING_BYTES];

	if (!take(json, '{')) {
		return false;
	}
	if (take(json, '}')) {
		return true;
	}
	do {
		size_t i = 0;
		bool taken;

		if (!take_string(json, name) || !take(json, ':')) {
			return false;
		}
		while (i < sizeof(known) / sizeof(known[0]) && strcmp(name, known[i].name) != 0) {
			i++;
		}
		if (i == sizeof(known) / sizeof(known[0])) {
			taken = skip_value(json, 0);
		} else if (known[i].text != NULL) {
			taken = take_string(json, known[i].text);
		} else {
			taken = take_number(json, known[i].number);
		}
		if (!taken) {
			return false;
		}
	} while (take(json, ','));
	return take(json, '}');
}

/* The methods of a configuration, one after the other, as some of them end later. */
struct load {
	char *text;
	struct json json;
	/* Inside the list of methods of a subsystem. */
	bool in_config;
	bool begun;
	shim_done_fn done;
	void *context;
};

static void load_on(struct load *load);

static void
load_end(struct load *load, int rc)
{
	shim_done_fn done = load->done;
	void *context = load->context;

	if (rc != 0) {
		log_line(SHIM_LOG_ERROR, "configuration failed at byte %zu: %s",
			 (size_t)(load->json.at - load->text), strerror(-rc));
	}
	free(load->text);
	free(load);
	done(context, rc);
}

static void
load_went_on(void *context, int rc)
{
	if (rc != 0) {
		load_end(context, rc);
	} else {
		load_on(context);
	}
}

static int
create_bdev(const struct params *params, const char *module, const char *base_name)
{
	struct bdev *bdev = calloc(1, sizeof(*bdev));
	struct bdev *base = NULL;
	int rc = 0;

	if (bdev == NULL) {
		return -ENOMEM;
	}
	pthread_mutex_lock(&g_lock);
	bdev->module = module;
	bdev->block_bytes = (uint32_t)params->block_size;
	bdev->blocks = params->num_blocks;
	if (base_name != NULL) {
		base = find_bdev(base_name);
		rc = base == NULL ? -ENODEV : base->writer ? -EPERM : 0;
		if (rc == 0) {
			bdev->base = base;
			bdev->block_bytes = base->block_bytes;
			bdev->blocks = base->blocks;
			snprintf(bdev->name, sizeof(bdev->name), "EE_%.100s", base_name);
		}
	} else {
		snprintf(bdev->name, sizeof(bdev->name), "%s", params->name);
	}
	if (rc == 0 && (bdev->name[0] == '\0' || bdev->blocks == 0 ||
			(bdev->block_bytes != 512 && bdev->block_bytes != 4096))) {
		rc = -EINVAL;
	}
	if (rc == 0 && find_bdev(bdev->name) != NULL) {
		rc = -EEXIST;
	}
	if (rc == 0 && strcmp(module, "malloc") == 0) {
		bdev->data = calloc(bdev->blocks, bdev->block_bytes);
		rc = bdev->data == NULL ? -ENOMEM : 0;
	}
	if (rc == 0) {
		if (base != NULL) {
			base->opened++;
			base->writer = true;
		}
		bdev->next = g_bdevs;
		g_bdevs = bdev;
	} else {
		free(bdev);
	}
	pthread_mutex_unlock(&g_lock);
	return rc;
}

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
			continue;
		}
		event->desc = desc;
		event->event = what;
		if (shim_thread_send(desc->thread, tell_event, event) != 0) {
			free(event);
		}
	}
}

/* Gives true when it has ended already. */
static bool
delete_bdev(const char *name, int *rc, shim_done_fn done, void *context)
{
	struct bdev *bdev;
	bool ended = true;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(name);
	if (bdev == NULL) {
		*rc = -ENODEV;
	} else {
		bdev->removed = true;
		if (bdev->base != NULL) {
			bdev->base->opened--;
			bdev->base->writer = false;
			bdev->base = NULL;
		}
		if (bdev->opened == 0) {
			forget_bdev(bdev);
		} else {
			bdev->done = done;
			bdev->context = context;
			tell_all(bdev, SHIM_BDEV_REMOVED);
			ended = false;
		}
		*rc = 0;
	}
	pthread_mutex_unlock(&g_lock);
	return ended;
}

static int
resize_bdev(const struct params *params)
{
	struct bdev *bdev;
	uint64_t blocks;
	int rc = 0;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(params->name);
	if (bdev == NULL || bdev->data != NULL || bdev->base != NULL) {
		rc = -EINVAL;
	} else {
		blocks = params->new_size * (1024 * 1024) / bdev->block_bytes;
		bdev->blocks = blocks;
		tell_all(bdev, SHIM_BDEV_RESIZED);
	}
	pthread_mutex_unlock(&g_lock);
	return rc;
}

static int
inject_error(const struct params *params)
{
	static const struct {
		const char *name;
		uint32_t operations;
	} types[] = {
		{ "read", SHIM_BDEV_READ },
		{ "write", SHIM_BDEV_WRITE },
		{ "flush", SHIM_BDEV_FLUSH },
		{ "unmap", SHIM_BDEV_UNMAP },
		{ "all", UINT32_MAX },
	};
	struct bdev *bdev;
	int rc = -EINVAL;

	pthread_mutex_lock(&g_lock);
	bdev = find_bdev(params->name);
	for (size_t i = 0; bdev != NULL && i < sizeof(types) / sizeof(types[0]); i++) {
		if (strcmp(params->io_type, types[i].name) == 0 &&
		    strcmp(params->error_type, "failure") == 0) {
			bdev->failing = types[i].operations;
			bdev->failures = params->num == 0 ? 1 : (unsigned)params->num;
			rc = 0;
		}
	}
	pthread_mutex_unlock(&g_lock);
	return bdev == NULL ? -ENODEV : rc;
}

/* Gives true when the method has ended. */
static bool
call(struct load *load, const char *method, const struct params *params, int *rc)
{
	if (strcmp(method, "bdev_malloc_create") == 0) {
		*rc = create_bdev(params, "malloc", NULL);
	} else if (strcmp(method, "bdev_null_create") == 0) {
		*rc = create_bdev(params, "null", NULL);
	} else if (strcmp(method, "bdev_error_create") == 0) {
		*rc = create_bdev(params, "error", params->base_name);
	} else if (strcmp(method, "bdev_null_resize") == 0) {
		*rc = resize_bdev(params);
	} else if (strcmp(method, "bdev_error_inject_error") == 0) {
		*rc = inject_error(params);
	} else if (strcmp(method, "bdev_malloc_delete") == 0 ||
		   strcmp(method, "bdev_null_delete") == 0 ||
		   strcmp(method, "bdev_error_delete") == 0) {
		return delete_bdev(params->name, rc, load_went_on, load);
	} else {
		log_line(SHIM_LOG_ERROR, "the double does not know the method %s", method);
		*rc = -ENOENT;
	}
	return true;
}

/* {"method": ..., "params": {...}}; false: the text is wrong. */
static bool
take_entry(struct json *json, char method[JSON_STRING_BYTES], struct params *params)
{
	char name[JSON_STRING_BYTES];

	method[0] = '\0';
	if (!take(json, '{')) {
		return false;
	}
	do {
		bool taken;

		if (!take_string(json, name) || !take(json, ':')) {
			return false;
		}
		if (strcmp(name, "method") == 0) {
			taken = take_string(json, method);
		} else if (strcmp(name, "params") == 0) {
			taken = take_params(json, params);
		} else {
			taken = skip_value(json, 0);
		}
		if (!taken) {
			return false;
		}
	} while (take(json, ','));
	return take(json, '}') && method[0] != '\0';
}

/* Up to the first method of a subsystem: {"subsystem": ..., "config": [ ; -1: wrong, 0: none there. */
static int
enter_subsystem(struct json *json)
{
	char name[JSON_STRING_BYTES];

	if (!take(json, '{')) {
		return -1;
	}
	do {
		if (!take_string(json, name) || !take(json, ':')) {
			return -1;
		}
		if (strcmp(name, "config") == 0) {
			if (take(json, '[')) {
				return 1;
			}
			if (!skip_value(json, 0)) {
				return -1;
			}
		} else if (!skip_value(json, 0)) {
			return -1;
		}
	} while (take(json, ','));
	return take(json, '}') ? 0 : -1;
}

/* What may follow "config" in a subsystem. */
static bool
leave_subsystem(struct json *json)
{
	char name[JSON_STRING_BYTES];

	while (take(json, ',')) {
		if (!take_string(json, name) || !take(json, ':') || !skip_value(json, 0)) {
			return false;
		}
	}
	return take(json, '}');
}

/* To the next method. 1: there is one, 0: the end, -1: the text is wrong. */
static int
next_method(struct load *load)
{
	struct json *json = &load->json;
	char name[JSON_STRING_BYTES];
	bool first = false;

	if (!load->begun) {
		load->begun = true;
		first = true;
		if (!take(json, '{') || !take_string(json, name) || strcmp(name, "subsystems") != 0 ||
		    !take(json, ':') || !take(json, '[')) {
			return -1;
		}
	}
	for (;;) {
		int entered;

		if (load->in_config) {
			if (!take(json, ']')) {
				/* The separator is taken by who has just read a method. */
				return 1;
			}
			load->in_config = false;
			if (!leave_subsystem(json)) {
				return -1;
			}
		}
		if (take(json, ']')) {
			return take(json, '}') ? 0 : -1;
		}
		if (!first && !take(json, ',')) {
			return -1;
		}
		first = false;
		entered = enter_subsystem(json);
		if (entered < 0) {
			return -1;
		}
		load->in_config = entered == 1;
	}
}

static void
load_on(struct load *load)
{
	for (;;) {
		struct params params = { 0 };
		char method[JSON_STRING_BYTES];
		int rc = 0;
		int next = next_method(load);

		if (next <= 0) {
			load_end(load, next == 0 ? 0 : -EINVAL);
			return;
		}
		if (!take_entry(&load->json, method, &params)) {
			load_end(load, -EINVAL);
			return;
		}
		take(&load->json, ',');
		if (!call(load, method, &params, &rc)) {
			/* It goes on when the method has ended. */
			return;
		}
		if (rc != 0) {
			log_line(SHIM_LOG_ERROR, "%s: %s", method, strerror(-rc));
			load_end(load, rc);
			return;
		}
	}
}

static void
load_begin(void *context)
{
	load_on(context);
}

struct notice {
	shim_done_fn done;
	void *context;
};

static void
tell(void *context)
{
	struct notice notice = *(struct notice *)context;

	free(context);
	notice.done(notice.context, 0);
}

static void
tell_later(shim_done_fn done, void *context)
{
	struct notice *notice = malloc(sizeof(*notice));

	if (notice == NULL) {
		done(context, -ENOMEM);
		return;
	}
	notice->done = done;
	notice->context = context;
	if (shim_thread_send(g_app_thread, tell, notice) != 0) {
		free(notice);
		done(context, -EIO);
	}
}

void
shim_configure(const char *text, size_t bytes, shim_done_fn done, void *context)
{
	struct load *load = calloc(1, sizeof(*load));

	if (load != NULL) {
		load->text = malloc(bytes + 1);
	}
	if (load == NULL || load->text == NULL) {
		free(load);
		done(context, -ENOMEM);
		return;
	}
	memcpy(load->text, text, bytes);
	load->json.at = load->text;
	load->json.end = load->text + bytes;
	load->done = done;
	load->context = context;
	if (shim_thread_send(g_app_thread, load_begin, load) != 0) {
		load_end(load, -EIO);
	}
}

void
shim_subsystems_start(const char *json, size_t json_bytes, shim_done_fn done, void *context)
{
	if (json == NULL) {
		tell_later(done, context);
		return;
	}
	shim_configure(json, json_bytes, done, context);
}

void
shim_subsystems_stop(shim_done_fn done, void *context)
{
	pthread_mutex_lock(&g_lock);
	while (g_bdevs != NULL) {
		forget_bdev(g_bdevs);
	}
	pthread_mutex_unlock(&g_lock);
	tell_later(done, context);
}
