// SPDX-License-Identifier: BSD-3-Clause
#include "memory_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <utility>

namespace vvfu::core {

MemoryFiles::File MemoryFiles::keep(Fd &fd)
{
    struct stat status {};
    const int flags = ::fcntl(fd.get(), F_GETFL);
    if (flags < 0 || ::fstat(fd.get(), &status) != 0) {
        return nullptr;
    }
    const Key key{status.st_dev, status.st_ino, flags & O_ACCMODE};
    if (const auto it = files_.find(key); it != files_.end()) {
        if (auto file = it->second.lock()) {
            return file;
        }
    }
    std::erase_if(files_, [](const auto &entry) { return entry.second.expired(); });
    if (files_.size() == kMaxFiles) {
        return nullptr;
    }
    auto file = std::make_shared<const Fd>(std::move(fd));
    files_.emplace(key, file);
    return file;
}

}  // namespace vvfu::core
