/* Set-uid root in its image: says whether the kernel let that count. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %u\n", (unsigned int)geteuid());
	return 0;
}
