/* Ways to run machine code that no signed file holds. Each is tried in a process of its own; "executed" means that
 * the foreign code ran. Built static, sealed, and run in a container: the code of this program itself is signed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
typedef int (*function)(void);

/* mov eax, 42; ret */
static const unsigned char code[8] = {0xb8, 42, 0, 0, 0, 0xc3, 0x90, 0x90};

__attribute__((noinline, aligned(PAGE))) static int victim(void) { return 7; }
__attribute__((noinline, aligned(PAGE))) static int after(void) { return 8; }
static unsigned char data[2 * PAGE] __attribute__((aligned(PAGE))) = {1};
static function volatile target = victim;

static int run(void *place) { return ((function)place)() == 42 ? 0 : EINVAL; }
static int filled(void *place) { memcpy(place, code, sizeof code); return run(place); }

static void *map(int protection, int flags) {
    int fd = flags & MAP_ANONYMOUS ? -1 : open("/proc/self/exe", O_RDONLY);
    return mmap(0, PAGE, protection, flags, fd, 0);
}

static int private_all(void) {
    void *place = map(PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE);
    return place == MAP_FAILED ? errno : filled(place);
}
static int then_executable(void *place) {
    if (place == MAP_FAILED) return errno;
    memcpy(place, code, sizeof code);
    return mprotect(place, PAGE, PROT_READ | PROT_EXEC) ? errno : run(place);
}
static int private_written(void) { return then_executable(map(PROT_READ | PROT_WRITE, MAP_PRIVATE)); }
static int anonymous(void) {
    return then_executable(map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
}
static int own_data(void) { return then_executable(data); }
static int executable_writable(void) {
    void *place = map(PROT_READ | PROT_EXEC, MAP_PRIVATE);
    if (place == MAP_FAILED) return errno;
    return mprotect(place, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) ? errno : filled(place);
}
static int there_and_back(void) {
    void *place = map(PROT_READ | PROT_EXEC, MAP_PRIVATE);
    if (place == MAP_FAILED || mprotect(place, PAGE, PROT_READ | PROT_WRITE)) return errno;
    return then_executable(place);
}
static int own_text(void) {
    return mprotect((void *)target, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) ? errno : filled((void *)target);
}
static int own_memory(void) {
    int fd = open("/proc/self/mem", O_RDWR);
    if (fd < 0 || pwrite(fd, code, sizeof code, (off_t)target) < 0) return errno;
    return run((void *)target);
}
static int shared_segment(void) {
    int id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0700);
    void *place = id < 0 ? (void *)-1 : shmat(id, 0, 0);
    if (place == (void *)-1) return errno;
    memcpy(place, code, sizeof code);
    void *again = shmat(id, 0, SHM_EXEC);
    int failed = again == (void *)-1 ? errno : 0;
    shmctl(id, IPC_RMID, 0);
    return failed ? failed : run(again);
}
static int memory_file(void) {
    char path[64];
    int fd = memfd_create("evil", 0), self = open("/proc/self/exe", O_RDONLY);
    for (ssize_t n; (n = read(self, data, sizeof data)) > 0;)
        if (write(fd, data, n) != n) return errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    execl(path, "prober", "child", (char *)0);
    return errno;
}

/* A child that waits, and what is done to its code. */
static int on_child(int (*change)(pid_t)) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(target() == 42 ? 42 : 1);
    }
    waitpid(child, &status, 0);
    int failed = change(child);
    ptrace(PTRACE_CONT, child, 0, 0);
    waitpid(child, &status, 0);
    if (failed) return failed;
    return WIFEXITED(status) && WEXITSTATUS(status) == 42 ? 0 : EINVAL;
}
static int poke(pid_t child) {
    long word;
    memcpy(&word, code, sizeof word);
    return ptrace(PTRACE_POKETEXT, child, (void *)target, (void *)word) ? errno : 0;
}
static int write_memory(pid_t child) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", child);
    int fd = open(path, O_RDWR);
    return fd < 0 || pwrite(fd, code, sizeof code, (off_t)target) < 0 ? errno : 0;
}
static int poked_child(void) { return on_child(poke); }
static int written_child(void) { return on_child(write_memory); }
static int nothing_foreign(void) { return target() == 7 && after() == 8 ? 0 : EINVAL; }

int main(int argc, char **argv) {
    (void)argv;
    static const struct { const char *name; int (*attempt)(void); } attempts[] = {
        {"private-all", private_all}, {"private-written", private_written},
        {"executable-writable", executable_writable}, {"there-and-back", there_and_back},
        {"own-text", own_text}, {"own-data", own_data}, {"anonymous", anonymous},
        {"own-memory", own_memory}, {"shared-segment", shared_segment}, {"memory-file", memory_file},
        {"poked-child", poked_child}, {"written-child", written_child}, {"nothing-foreign", nothing_foreign},
    };
    if (argc > 1) return 0;
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        int status;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) _exit(attempts[i].attempt());
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status)) printf("%s: signal %d\n", attempts[i].name, WTERMSIG(status));
        else if (WEXITSTATUS(status)) printf("%s: refused %d\n", attempts[i].name, WEXITSTATUS(status));
        else printf("%s: executed\n", attempts[i].name);
    }
    return 0;
}
