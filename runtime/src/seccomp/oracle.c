/* Asks libseccomp, for the tests of the seccomp compiler. Reads a profile from stdin, one item a line:
 *   default ACTION          arch TOKEN          rule ACTION NAME [INDEX OP A B]...
 * Actions, tokens and operators are libseccomp's numbers. Writes "unknown NAME" for a name that no table has, "highest
 * TOKEN NUMBER" per architecture (runc's findLastSyscalls), "program" and one "CODE JT JF K" line an instruction.
 * Rules are added as runc's matchCall does. */
#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/filter.h>

static void fail(const char *what, int rc) {
	fprintf(stderr, "%s: %s\n", what, strerror(-rc));
	exit(1);
}

int main(void) {
	char line[4096];
	uint32_t archs[16], highest[16] = {0}, def = 0;
	int count = 1, rc;
	scmp_filter_ctx ctx = NULL;
	archs[0] = seccomp_arch_native();
	while (fgets(line, sizeof line, stdin)) {
		char *word = strtok(line, " \n");
		if (!strcmp(word, "default")) {
			def = strtoul(strtok(NULL, " \n"), NULL, 0);
			ctx = seccomp_init(def);
			if (!ctx) fail("seccomp_init", -EINVAL);
		} else if (!strcmp(word, "arch")) {
			uint32_t token = strtoul(strtok(NULL, " \n"), NULL, 0);
			rc = seccomp_arch_add(ctx, token);
			if (rc && rc != -EEXIST) fail("seccomp_arch_add", rc);
			if (!rc) archs[count++] = token;
		} else {
			uint32_t action = strtoul(strtok(NULL, " \n"), NULL, 0);
			char *name = strtok(NULL, " \n");
			struct scmp_arg_cmp args[6];
			unsigned n = 0, seen = 0, twice = 0;
			for (char *index; n < 6 && (index = strtok(NULL, " \n")); n++) {
				args[n].arg = strtoul(index, NULL, 0);
				args[n].op = strtoul(strtok(NULL, " \n"), NULL, 0);
				args[n].datum_a = strtoull(strtok(NULL, " \n"), NULL, 0);
				args[n].datum_b = strtoull(strtok(NULL, " \n"), NULL, 0);
				twice |= seen & 1u << args[n].arg;
				seen |= 1u << args[n].arg;
			}
			for (int i = 0; i < count; i++) {
				int on = seccomp_syscall_resolve_name_arch(archs[i], name);
				if (on > 0 && (uint32_t)on > highest[i]) highest[i] = on;
			}
			int number = seccomp_syscall_resolve_name(name);
			if (number == __NR_SCMP_ERROR) {
				printf("unknown %s\n", name);
				continue;
			}
			if (action == def) continue;
			if (!twice) {
				rc = seccomp_rule_add_array(ctx, action, number, n, args);
				if (rc) fail(name, rc);
			}
			for (unsigned i = 0; twice && i < n; i++) {
				rc = seccomp_rule_add_array(ctx, action, number, 1, args + i);
				if (rc) fail(name, rc);
			}
		}
	}
	for (int i = 0; i < count; i++) printf("highest %u %u\n", archs[i], highest[i]);
	puts("program");
	FILE *file = tmpfile();
	if ((rc = seccomp_export_bpf(ctx, fileno(file)))) fail("seccomp_export_bpf", rc);
	rewind(file);
	struct sock_filter one;
	while (fread(&one, sizeof one, 1, file) == 1) printf("%u %u %u %u\n", one.code, one.jt, one.jf, one.k);
	return 0;
}
