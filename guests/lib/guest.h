// What every guest defines. Returning from it ends the VM with success.
#pragma once

namespace guest {

void GuestMain();

}  // namespace guest
